// argmax_upsample on CPUs. What it computes is defined in sampling.py, bit for bit.
//
// What bounds it: one byte is written a pixel. Where one class clearly wins a cell of the source
// (find_clear_winners), that is all. Elsewhere each class costs 9 vector operations for 8 pixels,
// with confidence another 22; the source is small and stays in the cache.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "checks.h"
#include "sample_cpu.h"

namespace {

struct Span {  // output columns between the same two source columns
  int64_t begin, end, left, right;
};

struct SourceRow {
  int64_t id = -1;                  // n * h + y
  std::vector<float> logits;        // [w][C]
  std::vector<int16_t> winner;      // [w], the class that clearly wins, or -1
};

// A class wins clearly if its lead over the second exceeds what rounding can take away. If one
// class clearly wins all corners of a cell of the source, it wins everywhere inside: weights are
// not negative, so the interpolated lead is at least the same mean of the leads, less four
// roundings of 2^-24 times the same mean of the values, for rows and again for columns; 2^-18
// leaves room. NaN loses everywhere, infinities are never clear.
CLONED void find_clear_winners(const float* logits, int64_t width, int64_t num_classes,
                               int16_t* winner) {
  for (int64_t x = 0; x < width; ++x, logits += num_classes) {
    float best = -std::numeric_limits<float>::infinity(), second = best;
    int16_t id = 0;
    for (int64_t c = 0; c < num_classes; ++c) {
      const bool better = logits[c] > best;
      second = better ? best : std::max(second, logits[c]);
      id = better ? static_cast<int16_t>(c) : id;
      best = better ? logits[c] : best;
    }
    const float enough = std::abs(best) * 0x1p-18f + std::numeric_limits<float>::min();
    winner[x] = std::abs(best) < 1e38f && best - second > enough ? id : -1;
  }
}

void load_row(const at::Tensor& logits, int64_t n, int64_t y, SourceRow& row) {
  if (row.id == n * logits.size(2) + y) return;
  row.id = n * logits.size(2) + y;
  row.logits.resize(logits.size(1) * logits.size(3));
  row.winner.resize(logits.size(3));
  copy_row(logits, n, y, row.logits.data());
  find_clear_winners(row.logits.data(), logits.size(3), logits.size(1), row.winner.data());
}

// Fills one output row, and up to kLanes - 1 elements past it. `columns` is room for 2 * C floats.
CLONED void fill_row(const SourceRow& top, const SourceRow& bottom, float top_weight,
                     float bottom_weight, int32_t num_classes, const std::vector<Span>& spans,
                     const Axis& xs, float* columns, uint8_t* out, float* confidence) {
  float *left = columns, *right = columns + num_classes;
  for (const Span& span : spans) {
    const int16_t clear = top.winner[span.left];
    if (!confidence && clear >= 0 && clear == top.winner[span.right] &&
        clear == bottom.winner[span.left] && clear == bottom.winner[span.right]) {
      const Bytes same = Bytes{} + static_cast<uint8_t>(clear);
      for (int64_t x = span.begin; x < span.end; x += kLanes) std::memcpy(out + x, &same, kLanes);
      continue;
    }
    const int64_t l = span.left * num_classes, r = span.right * num_classes;
    for (int32_t c = 0; c < num_classes; ++c) {
      left[c] = top_weight * top.logits[l + c] + bottom_weight * bottom.logits[l + c];
      right[c] = top_weight * top.logits[r + c] + bottom_weight * bottom.logits[r + c];
    }
    for (int64_t x = span.begin; x < span.end; x += kLanes) {
      const auto a = load<Floats>(&xs.low_weight[x]), b = load<Floats>(&xs.high_weight[x]);
      Floats best = Floats{} - std::numeric_limits<float>::infinity();
      Ints winner{};
      for (int32_t c = 0; c < num_classes; ++c) {
        const Floats value = a * left[c] + b * right[c];
        const Ints better = value > best;
        best = better ? value : best;
        winner = better ? Ints{} + c : winner;
      }
      const Bytes ids = __builtin_convertvector(winner, Bytes);
      std::memcpy(out + x, &ids, sizeof(ids));
      if (!confidence) continue;
      Floats total{};
      for (int32_t c = 0; c < num_classes; ++c) total += exp_of(a * left[c] + b * right[c] - best);
      const Floats share = best - best == 0.0f ? 1.0f / total : Floats{};
      std::memcpy(confidence + x, &share, sizeof(share));
    }
  }
}

std::tuple<at::Tensor, at::Tensor> argmax_upsample(const at::Tensor& logits, at::IntArrayRef size,
                                                   bool align_corners, bool with_confidence) {
  check_argmax_upsample(logits, size);
  const int64_t samples = logits.size(0), num_classes = logits.size(1), in_height = logits.size(2);
  const int64_t height = size[0], width = size[1];
  at::Tensor pred = at::empty({samples, height, width}, at::kByte);
  at::Tensor confidence =
      at::empty(with_confidence ? pred.sizes() : at::IntArrayRef({0}), at::kFloat);
  if (pred.numel() == 0) return {pred, confidence};

  const Axis ys(in_height, height, align_corners), xs(logits.size(3), width, align_corners);
  std::vector<Span> spans;
  for (int64_t x = 0; x < width; ++x) {
    if (x == 0 || xs.low[x] != xs.low[x - 1]) spans.push_back({x, x, xs.low[x], xs.high[x]});
    spans.back().end = x + 1;
  }
  uint8_t* preds = pred.mutable_data_ptr<uint8_t>();
  float* confidences = with_confidence ? confidence.mutable_data_ptr<float>() : nullptr;
  at::parallel_for(0, samples * height, kGrain / width + 1, [&](int64_t begin, int64_t end) {
    SourceRow top, bottom;
    std::vector<float> columns(2 * num_classes), confidence_row(width + kLanes);
    std::vector<uint8_t> pred_row(width + kLanes);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      if (bottom.id == n * in_height + ys.low[y]) std::swap(top, bottom);
      load_row(logits, n, ys.low[y], top);
      load_row(logits, n, ys.high[y], bottom);
      fill_row(top, bottom, ys.low_weight[y], ys.high_weight[y], static_cast<int32_t>(num_classes),
               spans, xs, columns.data(), pred_row.data(),
               with_confidence ? confidence_row.data() : nullptr);
      std::memcpy(preds + row * width, pred_row.data(), width);
      if (!with_confidence) continue;
      std::memcpy(confidences + row * width, confidence_row.data(), width * sizeof(float));
    }
  });
  return {pred, confidence};
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("argmax_upsample", &argmax_upsample);
}
