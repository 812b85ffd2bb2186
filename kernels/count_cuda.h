// Counting into cells with CUDA: what confusion_matrix and confidence_histogram share.
//
// Nothing here waits for the device, so that every call can be captured in a CUDA graph.
#pragma once

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "launch.h"

namespace {

constexpr int kSharedBytes = 48 * 1024;  // what every device grants without asking

// Counters of a block, in shared memory. From C++ the compiler would find the address of shared
// memory anew, in three instructions, at each addition.
struct SharedCounters {
#ifdef __CUDACC__
  unsigned address;

  __device__ explicit SharedCounters(const unsigned* counters)
      : address(static_cast<unsigned>(__cvta_generic_to_shared(counters))) {}
  __device__ void add(int cell, unsigned count) const {
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(address + 4 * cell), "r"(count) : "memory");
  }
#else  // the emulator of the tests
  unsigned* counters;

  explicit SharedCounters(unsigned* counters) : counters(counters) {}
  void add(int cell, unsigned count) const { atomicAdd(counters + cell, count); }
#endif
};

struct GlobalCounters {
  unsigned long long* counters;

  __device__ void add(int cell, unsigned count) const {
    atomicAdd(counters + cell, static_cast<unsigned long long>(count));
  }
};

// Counts 32 * n neighbours, run by run. A lane all of whose pixels share the last cell of the lane
// before joins it: a region of the map, however wide, is added once a warp. The whole warp calls it.
template <int n, typename Cells, typename Counters>
__device__ void count_pack(const Cells& cells, int64_t first, Counters counters) {
  int cell[n];
  cells.template find<n>(first, cell);
  unsigned run = 1;
#pragma unroll
  for (int i = 1; i < n; ++i) {
    if (cell[i] != cell[i - 1]) {
      counters.add(cell[i - 1], run);
      run = 0;
    }
    ++run;
  }
  const int lane = threadIdx.x % kWarp;
  const int before = __shfl_up_sync(kAllLanes, cell[n - 1], 1);
  const bool joins = run == n && lane > 0 && cell[n - 1] == before;
  const unsigned heads = __ballot_sync(kAllLanes, !joins);
  const unsigned later = heads >> lane >> 1 | 1u << (kWarp - 1 - lane);  // the next one, or the end
  if (!joins) counters.add(cell[n - 1], run + n * (__ffs(later) - 1));
}

template <int n, typename Cells, typename Counters>
__device__ void count_all(const Cells& cells, int64_t pixels, Counters counters) {
  constexpr int kTogether = kWarp * n;  // warps stay whole; what is left is counted one by one
  const int64_t whole = pixels / kTogether, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t thread = blockIdx.x * int64_t{kThreads} + threadIdx.x; thread / kWarp < whole;
       thread += stride) {
    count_pack<n>(cells, thread * n, counters);
  }
  if (blockIdx.x > 0) return;
  for (int64_t i = whole * kTogether + threadIdx.x; i < pixels; i += kThreads) {
    int cell[1];
    cells.template find<1>(i, cell);
    counters.add(cell[0], 1);
  }
}

// A block counts in shared memory, in several copies so that warps seldom meet; with too many cells
// (copies = 0) it counts in global memory. A shared counter holds 2^32 pixels of one block.
template <int n, typename Cells>
__global__ void histogram_kernel(Cells cells, int64_t pixels, int num_cells, int kept, int copies,
                                 unsigned long long* total) {
  extern __shared__ unsigned counters[];
  if (copies == 0) return count_all<n>(cells, pixels, GlobalCounters{total});
  for (int i = threadIdx.x; i < num_cells * copies; i += kThreads) counters[i] = 0;
  __syncthreads();
  const int copy = threadIdx.x / kWarp % copies;
  count_all<n>(cells, pixels, SharedCounters(counters + copy * num_cells));
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
    histogram_kernel<n><<<blocks_for(pixels / n, 8), kThreads, copies * bytes,
                          c10::cuda::getCurrentCUDAStream()>>>(
        cells, pixels, static_cast<int>(num_cells), static_cast<int>(kept),
        static_cast<int>(copies),
        reinterpret_cast<unsigned long long*>(result.mutable_data_ptr<int64_t>()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result.narrow(0, 0, kept);
}

}  // namespace
