// Bilinear sampling and softmax with CUDA: what argmax_upsample and soft_vote share.
#pragma once

#include <algorithm>

namespace {

struct Position {  // see source_positions in sampling.py
  int64_t low, high;
  float low_weight, high_weight;
};

__device__ float exact_position(int64_t out, float scale, bool align_corners) {
  const float at = static_cast<float>(out);
  return align_corners ? at * scale : fmaxf((at + 0.5f) * scale - 0.5f, 0.0f);
}

__device__ Position find_position(int64_t out, float scale, int64_t in_size, bool align_corners) {
  const float exact = exact_position(out, scale, align_corners);
  const int64_t low = min(static_cast<int64_t>(exact), in_size - 1);
  const float weight = exact - static_cast<float>(low);
  return {low, min(low + 1, in_size - 1), 1.0f - weight, weight};
}

__device__ float exp_of(float x) {  // see _exp in sampling.py
  x = x > -87.0f ? x : -87.0f;
  const float n = rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float value = static_cast<float>(1.0 / 720);
  value = value * r + static_cast<float>(1.0 / 120);
  value = value * r + static_cast<float>(1.0 / 24);
  value = value * r + static_cast<float>(1.0 / 6);
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  return value * __int_as_float((static_cast<int>(n) + 127) << 23);
}

inline float scale_of(int64_t in, int64_t out, bool align_corners) {
  return align_corners ? static_cast<float>(in - 1) / static_cast<float>(std::max<int64_t>(out - 1, 1))
                       : static_cast<float>(in) / static_cast<float>(out);
}

}  // namespace
