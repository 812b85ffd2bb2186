// Bilinear sampling and softmax on CPUs: what argmax_upsample and soft_vote share.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu.h"

namespace {

constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// Between which two source positions each output position of an axis lies, and their weights.
struct Axis {
  std::vector<int64_t> low, high;
  std::vector<float> low_weight, high_weight;  // padded to whole vectors

  Axis(int64_t in, int64_t out, bool align_corners)
      : low(out), high(out), low_weight(out + kLanes), high_weight(out + kLanes) {
    const float scale = align_corners ? static_cast<float>(in - 1) / std::max<float>(out - 1, 1)
                                      : static_cast<float>(in) / static_cast<float>(out);
    for (int64_t i = 0; i < out; ++i) {
      const float at = static_cast<float>(i);
      const float position = align_corners ? at * scale : std::max((at + 0.5f) * scale - 0.5f, 0.0f);
      low[i] = std::min(static_cast<int64_t>(position), in - 1);
      high[i] = std::min(low[i] + 1, in - 1);
      high_weight[i] = position - static_cast<float>(low[i]);
      low_weight[i] = 1.0f - high_weight[i];
    }
  }
};

template <typename T>
void copy_row_of(const at::Tensor& logits, int64_t n, int64_t y, float* row) {
  const int64_t num_classes = logits.size(1), width = logits.size(3);
  const int64_t class_stride = logits.stride(1), column_stride = logits.stride(3);
  const T* source = logits.const_data_ptr<T>() + n * logits.stride(0) + y * logits.stride(2);
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < num_classes; ++c) {
      *row++ = static_cast<float>(source[c * class_stride + x * column_stride]);
    }
  }
}

// Copies a row of logits [N, C, h, w] as float [w][C].
inline void copy_row(const at::Tensor& logits, int64_t n, int64_t y, float* row) {
  switch (logits.scalar_type()) {
    case at::kFloat: return copy_row_of<float>(logits, n, y, row);
    case at::kHalf: return copy_row_of<at::Half>(logits, n, y, row);
    default: return copy_row_of<at::BFloat16>(logits, n, y, row);
  }
}

template <typename Vector, typename Element>
INLINE Vector load(const Element* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// exp as sampling.py evaluates it. Adding 1.5 * 2^23 rounds to an integer, which then stands in
// the lowest bits; shifted into the exponent they give its power of two.
INLINE Floats exp_of(Floats x) {
  x = x > -87.0f ? x : Floats{} - 87.0f;
  const Floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats value = r * static_cast<float>(1.0 / 720) + static_cast<float>(1.0 / 120);
  value = value * r + static_cast<float>(1.0 / 24);
  value = value * r + static_cast<float>(1.0 / 6);
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  const Ints bits = (reinterpret_cast<const Ints&>(shifted) << 23) + 0x3f800000;
  return value * reinterpret_cast<const Floats&>(bits);
}

}  // namespace
