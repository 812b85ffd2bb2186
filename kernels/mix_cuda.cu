// Mixing with CUDA. What is computed is defined in reference.py, bit for bit.
//
// What bounds it is memory: every byte taken is read and written, 16 at a time, at 0.6 to 0.9 of the
// instructions that memory would wait for; classmix also reads the label for each channel, from the
// second-level cache. One launch serves all entries.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "launch.h"

namespace {

struct Entry {
  const void *a, *b;
  void* out;
  unsigned channels;
  int element_bytes;
  bool packed;  // whole 16-byte packs in every row
};

struct Entries {
  Entry items[kMostEntries];
  unsigned samples, height, width;
};

constexpr int kWarps = kThreads / kWarp;

// A region says which pixels take b. A warp asks it row by row, through a view of its own; where it
// asks, all lanes ask.

struct InBoxes {
  static constexpr int kSharedBytes = 0;
  const int64_t* boxes;  // [N, K, 4]
  int num_boxes, width;

  struct Columns {
    int begin, end;
  };

  struct View {
    const InBoxes& all;
    int64_t sample, y;
    Columns first;  // of the lane's box among the first 32

    __device__ explicit View(const InBoxes& all) : all(all) {}

    __device__ Columns columns(int box) const {  // none where the box is not on the row
      if (box >= all.num_boxes) return {0, 0};
      const int64_t* corners = all.boxes + (sample * all.num_boxes + box) * 4;
      if (y < corners[1] || y >= corners[3]) return {0, 0};
      const int64_t width = all.width;
      return {static_cast<int>(min(max(corners[0], int64_t{0}), width)),
              static_cast<int>(min(max(corners[2], int64_t{0}), width))};
    }

    __device__ void go_to(unsigned sample, unsigned y) {
      this->sample = sample;
      this->y = y;
      first = columns(threadIdx.x % kWarp);
    }

    // Bit i says whether pixel x + i takes b.
    template <int n>
    __device__ unsigned mask(int x, bool) const {
      unsigned bits = 0;
      for (int box = 0; box < all.num_boxes; box += kWarp) {
        const Columns mine = box == 0 ? first : columns(box + threadIdx.x % kWarp);
        unsigned left = __ballot_sync(kAllLanes, mine.begin < mine.end);
        for (; left != 0; left &= left - 1) {
          const int lane = __ffs(left) - 1;
          const int begin = __shfl_sync(kAllLanes, mine.begin, lane) - x;
          const int end = __shfl_sync(kAllLanes, mine.end, lane) - x;
          bits |= (1u << min(max(end, 0), n)) - (1u << min(max(begin, 0), n));
        }
      }
      return bits;
    }
  };
};

struct InClasses {
  static constexpr int kSharedBytes = kWarps * 256;  // a table for each warp
  const uint8_t* label;    // [N, H, W]
  const uint8_t* classes;  // [N, 256]: bools, whose bytes need not be 0 and 1
  unsigned height, width;

  struct View {
    const InClasses& all;
    uint8_t* taken;  // 1 for a class that takes b
    unsigned sample = ~0u;
    const uint8_t* ids;

    __device__ explicit View(const InClasses& all) : all(all) {
      extern __shared__ uint8_t tables[];
      taken = tables + threadIdx.x / kWarp * 256;
    }

    __device__ void go_to(unsigned sample, unsigned y) {
      ids = all.label + (int64_t{sample} * all.height + y) * all.width;
      if (sample == this->sample) return;
      this->sample = sample;
      const int first = threadIdx.x % kWarp * 8;
      const auto chosen = *reinterpret_cast<const Pack<uint8_t, 8>*>(
          all.classes + int64_t{sample} * 256 + first);
      __syncwarp();  // the table of the sample before has been read
#pragma unroll
      for (int i = 0; i < 8; ++i) taken[first + i] = chosen.values[i] != 0;
      __syncwarp();
    }

    template <int n>
    __device__ unsigned mask(int x, bool in_row) const {
      if (!in_row) return 0;
      const auto here = *reinterpret_cast<const Pack<uint8_t, n>*>(ids + x);
      unsigned bits = 0;
#pragma unroll
      for (int i = 0; i < n; ++i) bits |= unsigned{taken[here.values[i]]} << i;
      return bits;
    }
  };
};

// A warp takes a row, so that divisions are paid once a row and not once a pack.
template <typename T, int n, typename Region>
__device__ void mix_entry(const Entries& entries, const Entry& entry, const Region& region) {
  using Elements = Pack<T, n>;
  const int packs_in_row = static_cast<int>(entries.width / n);
  const unsigned rows = entries.samples * entry.channels * entries.height;
  typename Region::View view(region);
  for (unsigned row = blockIdx.x * kWarps + threadIdx.x / kWarp; row < rows;
       row += gridDim.x * kWarps) {
    view.go_to(row / entries.height / entry.channels, row % entries.height);
    const int64_t first = int64_t{row} * packs_in_row;
    const Elements* __restrict__ a = static_cast<const Elements*>(entry.a) + first;
    const Elements* __restrict__ b = static_cast<const Elements*>(entry.b) + first;
    Elements* __restrict__ out = static_cast<Elements*>(entry.out) + first;
#pragma unroll 2
    for (int base = 0; base < packs_in_row; base += kWarp) {
      const int pack = base + threadIdx.x % kWarp;
      const unsigned bits = view.template mask<n>(pack * n, pack < packs_in_row);
      if (pack >= packs_in_row) continue;
      Elements mixed = (bits ? b : a)[pack];
      if (bits && bits != (1u << n) - 1) {
        const Elements other = a[pack];
#pragma unroll
        for (int j = 0; j < n; ++j) {
          mixed.values[j] = bits >> j & 1 ? mixed.values[j] : other.values[j];
        }
      }
      out[pack] = mixed;
    }
  }
}

template <typename T, typename Region>
__device__ void mix_packed(const Entries& entries, const Entry& entry, const Region& region) {
  if (entry.packed) {
    mix_entry<T, 16 / sizeof(T)>(entries, entry, region);
  } else {
    mix_entry<T, 1>(entries, entry, region);
  }
}

template <typename Region>
__global__ void mix_kernel(const Entries entries, Region region) {
  const Entry& entry = entries.items[blockIdx.y];
  switch (entry.element_bytes) {
    case 1: return mix_packed<uint8_t>(entries, entry, region);
    case 2: return mix_packed<uint16_t>(entries, entry, region);
    case 4: return mix_packed<uint32_t>(entries, entry, region);
    case 8: return mix_packed<uint64_t>(entries, entry, region);
    default: return mix_packed<uint4>(entries, entry, region);
  }
}

template <typename Region>
std::vector<at::Tensor> mix(at::TensorList a, at::TensorList b, const Region& region) {
  std::vector<at::Tensor> results, inputs;  // inputs: kept until the kernel is on the stream
  Entries entries{{},
                  static_cast<unsigned>(a[0].size(0)),
                  static_cast<unsigned>(a[0].size(-2)),
                  static_cast<unsigned>(a[0].size(-1))};
  int64_t most_rows = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const at::Tensor ours = packable(a[i]), theirs = packable(b[i]);
    const at::Tensor out = at::empty(ours.sizes(), ours.options());
    const int bytes = static_cast<int>(ours.element_size());
    const int64_t channels = ours.dim() == 4 ? ours.size(1) : 1;
    const bool packed = entries.width * bytes % 16 == 0;
    entries.items[i] = {ours.const_data_ptr(),  theirs.const_data_ptr(),
                        out.mutable_data_ptr(), static_cast<unsigned>(channels),
                        bytes,                  packed};
    most_rows = std::max(most_rows, a[0].size(0) * channels * a[0].size(-2));
    inputs.insert(inputs.end(), {ours, theirs});
    results.push_back(out);
  }
  if (most_rows == 0 || a[0].size(-1) == 0) return results;
  TORCH_CHECK(std::max(most_rows, a[0].size(-1)) < int64_t{1} << 30, "an entry has more than 2^30 rows",
              " or columns: ", a[0].sizes());
  const dim3 grid(static_cast<unsigned>(blocks_for(most_rows * kWarp)),
                  static_cast<unsigned>(a.size()));
  mix_kernel<<<grid, kThreads, Region::kSharedBytes, c10::cuda::getCurrentCUDAStream()>>>(
      entries, region);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return results;
}

std::vector<at::Tensor> cutmix(at::TensorList a, at::TensorList b, const at::Tensor& boxes) {
  check_cutmix(a, b, boxes);
  const c10::cuda::CUDAGuard guard(a[0].device());
  const at::Tensor rows = boxes.contiguous();
  return mix(a, b, InBoxes{rows.const_data_ptr<int64_t>(), static_cast<int>(rows.size(1)),
                           static_cast<int>(a[0].size(-1))});
}

std::vector<at::Tensor> classmix(at::TensorList a, at::TensorList b, const at::Tensor& label,
                                 const at::Tensor& classes) {
  check_classmix(a, b, label, classes);
  const c10::cuda::CUDAGuard guard(a[0].device());
  const at::Tensor ids = packable(label), table = packable(classes);
  return mix(a, b, InClasses{ids.const_data_ptr<uint8_t>(),
                             static_cast<const uint8_t*>(table.const_data_ptr()),
                             static_cast<unsigned>(ids.size(1)),
                             static_cast<unsigned>(ids.size(2))});
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("cutmix", &cutmix);
  library.impl("classmix", &classmix);
}
