// Counting into cells with CUDA: what confusion_matrix and confidence_histogram share.
//
// Nothing here waits for the device, so that every call can be captured in a CUDA graph. Adding over
// a warp (__reduce_add_sync) needs sm_80 or newer.
#pragma once

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "launch.h"

namespace {

constexpr unsigned kAllLanes = 0xffffffff;
constexpr int kSharedBytes = 48 * 1024;  // what every device grants without asking

// Adds `count` to a cell for every lane; lanes of one warp that share a cell add once. The whole
// warp must call it.
template <typename Counter>
__device__ void add_together(Counter* counters, int cell, unsigned count) {
  const unsigned peers = __match_any_sync(kAllLanes, cell);
  const unsigned sum = __reduce_add_sync(peers, count);
  if (sum > 0 && threadIdx.x % kWarp == __ffs(peers) - 1) atomicAdd(&counters[cell], Counter{sum});
}

// Counts n neighbours, run by run; a lane beyond the end has `valid` false.
template <int n, typename Cells, typename Counter>
__device__ void count_pack(const Cells& cells, int64_t first, bool valid, Counter* counters) {
  int cell[n] = {};
  if (valid) cells.template find<n>(first, cell);
  unsigned run = valid;
#pragma unroll
  for (int i = 1; i < n; ++i) {
    if (cell[i] != cell[i - 1]) {
      atomicAdd(&counters[cell[i - 1]], Counter{run});
      run = 0;
    }
    run += valid;
  }
  add_together(counters, cell[n - 1], run);
}

template <int n, typename Cells, typename Counter>
__device__ void count_all(const Cells& cells, int64_t pixels, Counter* counters) {
  const int64_t packs = pixels / n, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  // The bound depends on the block only: warps stay whole.
  for (int64_t base = blockIdx.x * int64_t{kThreads}; base < packs; base += stride) {
    const int64_t pack = base + threadIdx.x;
    count_pack<n>(cells, pack * n, pack < packs, counters);
  }
  if (n > 1 && blockIdx.x == 0) {
    const int64_t rest = packs * n + threadIdx.x;  // fewer than n <= kThreads pixels
    count_pack<1>(cells, rest, rest < pixels, counters);
  }
}

// A block counts in shared memory, in several copies so that warps seldom meet; with too many cells
// (copies = 0) it counts in global memory. A shared counter holds 2^32 pixels of one block.
template <int n, typename Cells>
__global__ void histogram_kernel(Cells cells, int64_t pixels, int num_cells, int kept, int copies,
                                 unsigned long long* total) {
  extern __shared__ unsigned counters[];
  if (copies == 0) return count_all<n>(cells, pixels, total);
  for (int i = threadIdx.x; i < num_cells * copies; i += kThreads) counters[i] = 0;
  __syncthreads();
  count_all<n>(cells, pixels, counters + threadIdx.x / kWarp % copies * num_cells);
  __syncthreads();
  for (int i = threadIdx.x; i < kept; i += kThreads) {
    unsigned long long sum = 0;
    for (int copy = 0; copy < copies; ++copy) sum += counters[copy * num_cells + i];
    if (sum > 0) atomicAdd(&total[i], sum);
  }
}

template <int n, typename Cells>
at::Tensor histogram(const Cells& cells, int64_t pixels, int64_t num_cells, int64_t kept,
                     const at::TensorOptions& options) {
  at::Tensor result = at::zeros({num_cells}, options.dtype(at::kLong));
  if (pixels > 0) {
    const int64_t bytes = num_cells * static_cast<int64_t>(sizeof(unsigned));
    const int64_t copies = std::min<int64_t>(kThreads / kWarp, kSharedBytes / bytes);
    histogram_kernel<n><<<blocks_for(pixels / n, 4), kThreads, copies * bytes,
                          c10::cuda::getCurrentCUDAStream()>>>(
        cells, pixels, static_cast<int>(num_cells), static_cast<int>(kept),
        static_cast<int>(copies),
        reinterpret_cast<unsigned long long*>(result.mutable_data_ptr<int64_t>()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result.narrow(0, 0, kept);
}

}  // namespace
