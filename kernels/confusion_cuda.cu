// Counting and voting with CUDA. What they compute is defined in reference.py, bit for bit.
//
// What bounds each one (P pixels, M members):
//   confusion_matrix      reads P predictions and labels; shared-memory atomics where labels change
//                         from pixel to pixel (runs in a thread and in a warp are counted at once).
//   confidence_histogram  reads 5 * P bytes, then counts as confusion_matrix does.
//   hard_vote             reads M * P bytes, writes P; M * (M - 1) / 2 comparisons a pixel.
// Calculated floors at 4.3 TB/s for 64 maps of 2048x1024: 62 us for confusion_matrix of uint8, 156
// us for confidence_histogram, 187 us for hard_vote of 5. A single map takes a launch.
//
// Nothing here waits for the device, so that every call can be captured in a CUDA graph. The sums
// of hard_vote need no care about fused multiply-adds: they multiply nothing. Adding over a warp
// (__reduce_add_sync) needs sm_80 or newer.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "launch.h"

namespace {

constexpr unsigned kAllLanes = 0xffffffff;

// ---- confusion_matrix, confidence_histogram ----------------------------------------------------

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

template <typename Pred, typename Label>
struct MatrixCells {
  const Pred* pred;
  const Label* label;
  unsigned num_classes;
  int64_t ignore_index;

  template <typename T>
  __device__ int class_or_spare(T id) const {
    const bool valid = static_cast<uint64_t>(id) < num_classes;  // a negative id is a large one
    return valid ? static_cast<int>(id) : num_classes;
  }

  template <int n>
  __device__ void find(int64_t first, int* cell) const {
    const auto p = *reinterpret_cast<const Pack<Pred, n>*>(pred + first);
    const auto l = *reinterpret_cast<const Pack<Label, n>*>(label + first);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool ignored = static_cast<int64_t>(l.values[i]) == ignore_index;
      const int row = ignored ? num_classes + 1 : class_or_spare(l.values[i]);
      cell[i] = row * (num_classes + 1) + class_or_spare(p.values[i]);
    }
  }
};

template <typename Use>
void with_type(const at::Tensor& ids, const Use& use) {
  switch (ids.scalar_type()) {
    case at::kByte: return use(ids.const_data_ptr<uint8_t>());
    case at::kInt: return use(ids.const_data_ptr<int32_t>());
    default: return use(ids.const_data_ptr<int64_t>());
  }
}

at::Tensor confusion_matrix(const at::Tensor& pred, const at::Tensor& label, int64_t num_classes,
                            int64_t ignore_index) {
  check_confusion_matrix(pred, label, num_classes);
  const c10::cuda::CUDAGuard guard(pred.device());
  const at::Tensor preds = packable(pred), labels = packable(label);
  const int64_t side = num_classes + 1;
  at::Tensor result;
  with_type(preds, [&](const auto* p) {
    with_type(labels, [&](const auto* l) {
      using Pred = std::remove_const_t<std::remove_pointer_t<decltype(p)>>;
      using Label = std::remove_const_t<std::remove_pointer_t<decltype(l)>>;
      constexpr int n = 16 / std::max(sizeof(Pred), sizeof(Label));
      const MatrixCells<Pred, Label> cells{p, l, static_cast<unsigned>(num_classes), ignore_index};
      result = histogram<n>(cells, preds.numel(), (side + 1) * side, side * side, preds.options());
    });
  });
  return result.view({side, side});
}

struct ConfidenceCells {
  const float* confidence;
  const uint8_t* pred;
  int num_classes, bins;

  template <int n>
  __device__ void find(int64_t first, int* cell) const {
    const auto f = *reinterpret_cast<const Pack<float, n>*>(confidence + first);
    const auto p = *reinterpret_cast<const Pack<uint8_t, n>*>(pred + first);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float position = f.values[i] * static_cast<float>(bins);
      const bool counted = p.values[i] < num_classes && position == position;
      const int column = static_cast<int>(fminf(fmaxf(position, 0.0f), bins - 1));
      cell[i] = counted ? p.values[i] * bins + column : num_classes * bins;
    }
  }
};

at::Tensor confidence_histogram(const at::Tensor& confidence, const at::Tensor& pred,
                                int64_t num_classes, int64_t bins) {
  check_confidence_histogram(confidence, pred, num_classes, bins);
  const c10::cuda::CUDAGuard guard(pred.device());
  const at::Tensor f = packable(confidence), p = packable(pred);
  const ConfidenceCells cells{f.const_data_ptr<float>(), p.const_data_ptr<uint8_t>(),
                              static_cast<int>(num_classes), static_cast<int>(bins)};
  const int64_t kept = num_classes * bins;
  return histogram<4>(cells, p.numel(), kept + 1, kept, p.options()).view({num_classes, bins});
}

// ---- hard_vote ---------------------------------------------------------------------------------

struct Weights {
  float of[255];  // passed with the launch: nothing to copy to the device beforehand
};

// As in confusion_cpu.cpp: the first member of a class finds its whole sum, and the largest key wins.
template <int n>
__global__ void hard_vote_kernel(const uint8_t* votes, int members, int64_t pixels, int num_classes,
                                 const Weights weights, uint8_t* winner) {
  using Ids = Pack<uint8_t, n>;
  for (int64_t pack = blockIdx.x * int64_t{kThreads} + threadIdx.x; pack < pixels / n;
       pack += static_cast<int64_t>(gridDim.x) * kThreads) {
    unsigned long long best[n] = {};
    for (int i = 0; i < members; ++i) {
      const Ids mine = reinterpret_cast<const Ids*>(votes + i * pixels)[pack];
      float total[n];
      for (int x = 0; x < n; ++x) total[x] = weights.of[i];
      for (int j = i + 1; j < members; ++j) {
        const Ids theirs = reinterpret_cast<const Ids*>(votes + j * pixels)[pack];
#pragma unroll
        for (int x = 0; x < n; ++x) {
          total[x] += theirs.values[x] == mine.values[x] ? weights.of[j] : 0.0f;
        }
      }
#pragma unroll
      for (int x = 0; x < n; ++x) {
        const unsigned long long sum = __float_as_uint(total[x]);
        const unsigned long long key = sum << 8 | (255 - mine.values[x]);
        best[x] = max(best[x], mine.values[x] < num_classes ? key : 0);
      }
    }
    Ids ids;
#pragma unroll
    for (int x = 0; x < n; ++x) ids.values[x] = static_cast<uint8_t>(255 - (best[x] & 255));
    reinterpret_cast<Ids*>(winner)[pack] = ids;
  }
}

at::Tensor hard_vote(const at::Tensor& predictions, int64_t num_classes,
                     const std::optional<at::ArrayRef<double>>& weights) {
  check_hard_vote(predictions, num_classes, weights);
  const c10::cuda::CUDAGuard guard(predictions.device());
  const at::Tensor votes = packable(predictions);
  at::Tensor result = at::empty(votes.sizes().slice(1), votes.options());
  const int64_t members = votes.size(0), pixels = result.numel();
  if (pixels == 0) return result;
  Weights given;
  for (int64_t i = 0; i < members; ++i) {
    given.of[i] = weights ? static_cast<float>((*weights)[i]) : 1.0f;
  }
  constexpr int n = 8;
  const bool packed = pixels % n == 0;
  const auto kernel = packed ? &hard_vote_kernel<n> : &hard_vote_kernel<1>;
  kernel<<<blocks_for(packed ? pixels / n : pixels), kThreads, 0,
           c10::cuda::getCurrentCUDAStream()>>>(
      votes.const_data_ptr<uint8_t>(), static_cast<int>(members), pixels,
      static_cast<int>(num_classes), given, result.mutable_data_ptr<uint8_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("confusion_matrix", &confusion_matrix);
  library.impl("confidence_histogram", &confidence_histogram);
  library.impl("hard_vote", &hard_vote);
}
