// confusion_matrix with CUDA. What it computes is defined in reference.py, bit for bit.
//
// What bounds it: for uint8, which moves 2 bytes a pixel, instructions and memory about alike (16
// instructions a pixel: a third finds the cells, a third asks where they change, the rest adds), and
// in maps of noise the passes of atomics through shared memory; for int64, memory. Runs in a thread
// and in a warp are added at once. A single map takes a launch.

#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "count_cuda.h"

namespace {

template <typename Pred, typename Label>
struct MatrixCells {
  const Pred* pred;
  const Label* label;
  unsigned num_classes;
  Label ignored;
  bool can_be_ignored;

  MatrixCells(const Pred* pred, const Label* label, int64_t num_classes, int64_t ignore_index)
      : pred(pred),
        label(label),
        num_classes(static_cast<unsigned>(num_classes)),
        ignored(static_cast<Label>(ignore_index)),
        can_be_ignored(static_cast<int64_t>(ignored) == ignore_index) {}

  template <typename T>
  __device__ unsigned class_or_spare(T id) const {
    using Unsigned = std::make_unsigned_t<T>;  // in which a negative id is a large one
    const bool valid = static_cast<Unsigned>(id) < num_classes;
    return valid ? static_cast<unsigned>(id) : num_classes;
  }

  template <int n>
  __device__ void find(int64_t first, int* cell) const {
    const auto p = *reinterpret_cast<const Pack<Pred, n>*>(pred + first);
    const auto l = *reinterpret_cast<const Pack<Label, n>*>(label + first);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool skipped = can_be_ignored && l.values[i] == ignored;
      const unsigned row = skipped ? num_classes + 1 : class_or_spare(l.values[i]);
      cell[i] = static_cast<int>(row * (num_classes + 1) + class_or_spare(p.values[i]));
    }
  }
};

// The same for bytes, where a cell has 16 bits: four ids in a word, two cells in the next.
struct ByteCells : MatrixCells<uint8_t, uint8_t> {
  static constexpr int64_t kMostClasses = 254;
  using MatrixCells::MatrixCells;

  template <int n>
  __device__ std::enable_if_t<n == 1> find(int64_t first, int* cell) const {
    MatrixCells::find<1>(first, cell);
  }

  template <int n>
  __device__ std::enable_if_t<n == 16> find(int64_t first, int* cell) const {
    const auto p = *reinterpret_cast<const Pack<unsigned, 4>*>(pred + first);
    const auto l = *reinterpret_cast<const Pack<unsigned, 4>*>(label + first);
    const unsigned spare = num_classes * 0x00010001, side = num_classes + 1;
    const unsigned skipped_row = can_be_ignored ? side : 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const unsigned skipped = equal_bytes(l.values[w], unsigned{ignored} * 0x01010101) >> 7;
      const unsigned rows = skipped * skipped_row;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned two = half ? 0x4342 : 0x4140;  // bytes, each in 16 bits
        const unsigned row = __vmaxu2(__vminu2(__byte_perm(l.values[w], 0, two), spare),
                                      __byte_perm(rows, 0, two));
        const unsigned cells = row * side + __vminu2(__byte_perm(p.values[w], 0, two), spare);
        cell[4 * w + 2 * half] = cells & 0xffff;
        cell[4 * w + 2 * half + 1] = cells >> 16;
      }
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
  const auto count = [&](auto per_pack, const auto& cells) {
    constexpr int n = decltype(per_pack)::value;
    result = histogram<n>(cells, preds.numel(), (side + 1) * side, side * side, preds.options());
  };
  with_type(preds, [&](const auto* p) {
    with_type(labels, [&](const auto* l) {
      using Pred = std::remove_const_t<std::remove_pointer_t<decltype(p)>>;
      using Label = std::remove_const_t<std::remove_pointer_t<decltype(l)>>;
      constexpr std::integral_constant<int, 16 / std::max(sizeof(Pred), sizeof(Label))> n;
      if constexpr (n == 16) {
        if (num_classes <= ByteCells::kMostClasses) {
          return count(n, ByteCells(p, l, num_classes, ignore_index));
        }
      }
      count(n, MatrixCells<Pred, Label>(p, l, num_classes, ignore_index));
    });
  });
  return result.view({side, side});
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("confusion_matrix", &confusion_matrix);
}
