// What the CUDA sources share: how many threads they launch, and 16-byte loads, bytes in a word.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// Enough blocks to fill the device a few times; the kernels stride over what is left.
inline int64_t blocks_for(int64_t threads, int64_t most_per_multiprocessor = 16) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        c10::cuda::current_device()));
  const int64_t needed = (threads + kThreads - 1) / kThreads;
  return std::clamp<int64_t>(needed, 1, multiprocessors * most_per_multiprocessor);
}

// n neighbours that are loaded or stored at once.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
  T values[n];
};

// 0x80 in each byte of a that equals that of b.
__device__ inline unsigned equal_bytes(unsigned a, unsigned b) {
  const unsigned low = (a ^ b) & 0x7f7f7f7f;
  return ~((low + 0x7f7f7f7f) | (a ^ b)) & 0x80808080;
}

// The tensor in memory that can be read pack by pack: copied only if it is not there already.
inline at::Tensor packable(const at::Tensor& tensor) {
  const at::Tensor result = tensor.contiguous();
  const bool aligned = reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0;
  return aligned ? result : result.clone();
}

}  // namespace
