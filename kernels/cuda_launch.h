// What the CUDA sources share: how many threads and blocks they launch.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

namespace {

constexpr int kThreads = 256;

// Enough blocks to fill the device a few times; the kernels stride over what is left.
inline int64_t blocks_for(int64_t threads, int64_t most_per_multiprocessor = 16) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        c10::cuda::current_device()));
  const int64_t needed = (threads + kThreads - 1) / kThreads;
  return std::clamp<int64_t>(needed, 1, multiprocessors * most_per_multiprocessor);
}

}  // namespace
