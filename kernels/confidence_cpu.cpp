// confidence_histogram on CPUs. What it computes is defined in reference.py, bit for bit.
//
// What bounds it (cycles of a 2019 Intel core with AVX-512): it reads 5 bytes a pixel, finds the cell
// in 0.5 cycles and increments one counter: 2 cycles where confidences are noise, of which 1.5 are
// the floor.

#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "count_cpu.h"

namespace {

struct Maps {
  const float* confidence;
  const uint8_t *pred, *label;  // label may be absent
  int32_t num_classes, bins, ignored;
};

// A cell is a class and a bin; with a label also whether it was right. The row after the classes takes
// what is not counted.
template <bool labelled>
INLINE void count_maps(const Maps& maps, int64_t begin, int64_t end, Counters counters) {
  const float scale = static_cast<float>(maps.bins), highest = static_cast<float>(maps.bins - 1);
  const int32_t num_classes = maps.num_classes, bins = maps.bins, ignored = maps.ignored;
  alignas(64) uint32_t index[kBlock];
  for (; begin < end; begin += kBlock) {
    const int64_t count = std::min(kBlock, end - begin);
    const float* confidence = maps.confidence + begin;
    const uint8_t *pred = maps.pred + begin, *label = labelled ? maps.label + begin : nullptr;
    for (int64_t i = 0; i < count; ++i) {
      const float position = confidence[i] * scale;
      float column = position > 0 ? position : 0;  // NaN too
      column = column < highest ? column : highest;
      int32_t row = std::min<int32_t>(pred[i], num_classes);
      row = position == position ? row : num_classes;
      if (labelled) row = label[i] != ignored ? row : num_classes;
      const int32_t cell = row * bins + static_cast<int32_t>(column);
      index[i] = labelled ? 2 * cell + (pred[i] == label[i]) : cell;
    }
    count_block(index, count, counters);
  }
}

CLONED void count_confidences(const Maps& maps, int64_t begin, int64_t end, Counters counters) {
  count_maps<false>(maps, begin, end, counters);
}

CLONED void count_rights(const Maps& maps, int64_t begin, int64_t end, Counters counters) {
  count_maps<true>(maps, begin, end, counters);
}

at::Tensor confidence_histogram(const at::Tensor& confidence, const at::Tensor& pred,
                                int64_t num_classes, int64_t bins,
                                const std::optional<at::Tensor>& label, int64_t ignore_index) {
  check_confidence_histogram(confidence, pred, num_classes, bins, label);
  const at::Tensor f = confidence.contiguous(), p = pred.contiguous();
  const at::Tensor l = label ? label->contiguous() : p;
  const bool any_ignored = ignore_index >= 0 && ignore_index < 256;
  const Maps maps{f.const_data_ptr<float>(), p.const_data_ptr<uint8_t>(),
                  l.const_data_ptr<uint8_t>(), static_cast<int32_t>(num_classes),
                  static_cast<int32_t>(bins), any_ignored ? static_cast<int32_t>(ignore_index) : -1};
  const auto count = [&](int64_t begin, int64_t end, Counters counters) {
    label ? count_rights(maps, begin, end, counters) : count_confidences(maps, begin, end, counters);
  };
  const int64_t sides = label ? 2 : 1, cells = num_classes * bins * sides;
  const at::Tensor result = histogram(p.numel(), cells + bins * sides, cells, count);
  return label ? result.view({num_classes, bins, 2}) : result.view({num_classes, bins});
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("confidence_histogram", &confidence_histogram);
}
