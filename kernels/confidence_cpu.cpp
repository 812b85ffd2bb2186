// confidence_histogram on CPUs. What it computes is defined in reference.py, bit for bit.
//
// What bounds it (cycles of a 2019 Intel core with AVX-512): it reads 5 bytes a pixel, finds the cell
// in 0.5 cycles and increments one counter: 2 cycles where confidences are noise, of which 1.5 are
// the floor.

#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "count_cpu.h"

namespace {

// The row after the classes takes what is not counted.
CLONED void count_confidences(const float* confidence, const uint8_t* pred, int64_t begin,
                              int64_t end, int32_t num_classes, int32_t bins, Counters counters) {
  const float scale = static_cast<float>(bins), highest = static_cast<float>(bins - 1);
  alignas(64) uint32_t index[kBlock];
  for (; begin < end; begin += kBlock) {
    const int64_t count = std::min(kBlock, end - begin);
    for (int64_t i = 0; i < count; ++i) {
      const float position = confidence[begin + i] * scale;
      float column = position > 0 ? position : 0;  // NaN too
      column = column < highest ? column : highest;
      const int32_t row = std::min<int32_t>(pred[begin + i], num_classes);
      index[i] = (position == position ? row : num_classes) * bins + static_cast<int32_t>(column);
    }
    count_block(index, count, counters);
  }
}

at::Tensor confidence_histogram(const at::Tensor& confidence, const at::Tensor& pred,
                                int64_t num_classes, int64_t bins) {
  check_confidence_histogram(confidence, pred, num_classes, bins);
  const at::Tensor f = confidence.contiguous(), p = pred.contiguous();
  const auto count = [&](int64_t begin, int64_t end, Counters counters) {
    count_confidences(f.const_data_ptr<float>(), p.const_data_ptr<uint8_t>(), begin, end,
                      static_cast<int32_t>(num_classes), static_cast<int32_t>(bins), counters);
  };
  const int64_t cells = num_classes * bins;
  return histogram(p.numel(), cells + bins, cells, count).view({num_classes, bins});
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("confidence_histogram", &confidence_histogram);
}
