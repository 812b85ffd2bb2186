// confusion_matrix on CPUs. What it computes is defined in reference.py, bit for bit.
//
// What bounds it (cycles of a 2019 Intel core with AVX-512): it reads predictions and labels. Finding
// the cells takes 0.3 cycles a pixel of uint8, finding where they change 0.35, and in a run of 64
// with changes, a mispredicted branch and 5 cycles a change: another 0.3 in network-like maps. Noise
// is counted pixel by pixel: two loads and a store address on two ports, 1.5 cycles. Memory bounds
// int64 labels: 16 bytes a pixel.

#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "count_cpu.h"

namespace {

template <typename Index, typename T>
INLINE Index class_or_spare(T id, Index num_classes) {
  using Unsigned = std::make_unsigned_t<T>;  // in which a negative id is a large one
  using Compared = std::conditional_t<(sizeof(T) > sizeof(Index)), Unsigned, Index>;
  return static_cast<Index>(
      std::min<Compared>(static_cast<Unsigned>(id), static_cast<Compared>(num_classes)));
}

// Rows of the matrix: the classes, the spare one, and one more for ignored pixels.
template <typename Index, typename Pred, typename Label>
INLINE void count_typed_pairs(const Pred* pred, const Label* label, int64_t begin, int64_t end,
                              Index num_classes, int64_t ignore_index, Counters counters) {
  const Label ignored = static_cast<Label>(ignore_index);
  const bool can_be_ignored = static_cast<int64_t>(ignored) == ignore_index;
  const Index side = num_classes + 1;
  alignas(64) Index index[kBlock + 1] = {};
  for (; begin < end; begin += kBlock) {
    const Pred* p = pred + begin;
    const Label* l = label + begin;
    const int64_t count = std::min(kBlock, end - begin);
    for (int64_t i = 0; i < count; ++i) {
      const Index row = class_or_spare(l[i], num_classes);
      index[i] = side * (can_be_ignored && l[i] == ignored ? side : row);
      index[i] += class_or_spare(p[i], num_classes);
    }
    count_block(index, count, counters);
  }
}

struct Ids {
  const void* data;
  at::ScalarType type;
};

template <typename Use>
INLINE void with_type(Ids ids, const Use& use) {
  switch (ids.type) {
    case at::kByte: return use(static_cast<const uint8_t*>(ids.data));
    case at::kInt: return use(static_cast<const int32_t*>(ids.data));
    default: return use(static_cast<const int64_t*>(ids.data));
  }
}

template <typename Index>
INLINE void count_pairs(Ids preds, Ids labels, int64_t begin, int64_t end, Index num_classes,
                        int64_t ignore_index, Counters counters) {
  with_type(preds, [&](const auto* pred) __attribute__((always_inline)) {
    with_type(labels, [&](const auto* label) __attribute__((always_inline)) {
      count_typed_pairs(pred, label, begin, end, num_classes, ignore_index, counters);
    });
  });
}

constexpr int64_t kMostShort = 254;  // classes whose cells can be told apart in 16 bits

CLONED void count_few(Ids preds, Ids labels, int64_t begin, int64_t end, int64_t num_classes,
                      int64_t ignore_index, Counters counters) {
  count_pairs<uint16_t>(preds, labels, begin, end, num_classes, ignore_index, counters);
}

CLONED void count_many(Ids preds, Ids labels, int64_t begin, int64_t end, int64_t num_classes,
                       int64_t ignore_index, Counters counters) {
  count_pairs<uint32_t>(preds, labels, begin, end, num_classes, ignore_index, counters);
}

at::Tensor confusion_matrix(const at::Tensor& pred, const at::Tensor& label, int64_t num_classes,
                            int64_t ignore_index) {
  check_confusion_matrix(pred, label, num_classes);
  const at::Tensor p = pred.contiguous(), l = label.contiguous();
  const Ids preds{p.const_data_ptr(), p.scalar_type()}, labels{l.const_data_ptr(), l.scalar_type()};
  const int64_t side = num_classes + 1;
  const auto count = [&](int64_t begin, int64_t end, Counters counters) {
    const auto count_range = num_classes <= kMostShort ? count_few : count_many;
    count_range(preds, labels, begin, end, num_classes, ignore_index, counters);
  };
  return histogram(p.numel(), (side + 1) * side, side * side, count).view({side, side});
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("confusion_matrix", &confusion_matrix);
}
