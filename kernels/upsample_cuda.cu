// argmax_upsample with CUDA. What it computes is defined in sampling.py, bit for bit.
//
// What bounds it: instructions. A thread takes up to 4x8 pixels of one cell of the source, finds the
// classes that can win there, 22 instructions a class for all its pixels, and compares those alone,
// 8 instructions a class and pixel; with confidence every class costs each pixel 25 more. Memory
// sees a byte a pixel; the source stays in the caches. `python -m tools.benchmark sass` counts them.
// Equal results need a build without fused multiply-adds (--fmad=false).

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cfloat>
#include <tuple>

#include "checks.h"
#include "launch.h"
#include "sample_cuda.h"

namespace {

constexpr int kSide = 4;    // pixels of a thread at a time, in each direction, where cells are large
constexpr int kPasses = 2;  // that many times downwards: what can win in the cell is found once

struct Axis {
  int in, out;
  float scale, inverse;
  bool align_corners;
  int parts;  // into which a cell is cut, for a thread each

  Axis(int64_t in, int64_t out, bool align_corners, int most_pixels)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        scale(scale_of(in, out, align_corners)),
        inverse(1.0f / std::max(scale, FLT_MIN)),
        align_corners(align_corners),
        parts(std::max((this->out / this->in + most_pixels - 1) / most_pixels, 1)) {}

  __device__ int cell_of(int pixel) const {
    return min(static_cast<int>(exact_position(pixel, scale, align_corners)), in - 1);
  }

  __device__ int first_pixel(int cell) const {  // the first of this cell or a later one
    if (cell <= 0) return 0;
    if (cell >= in) return out;
    const float middle = align_corners ? 0.0f : 0.5f;
    int pixel = min(max(static_cast<int>((cell + middle) * inverse - middle), 0), out);
    while (pixel > 0 && cell_of(pixel - 1) >= cell) --pixel;
    while (pixel < out && cell_of(pixel) < cell) ++pixel;
    return pixel;
  }
};

struct Stretch {  // pixels of an axis that lie in one cell
  int cell, begin, end;
};

// The parts are numbered on through all cells.
__device__ Stretch part_of_cell(const Axis& axis, int number) {
  const int parts = axis.parts, cell = number / parts, part = number % parts;
  const int first = axis.first_pixel(cell), pixels = axis.first_pixel(cell + 1) - first;
  return {cell, first + pixels * part / parts, first + pixels * (part + 1) / parts};
}

template <typename T>
struct Source {
  const T* data;
  int64_t strides[4];  // n, c, h, w
  int num_classes;
  Axis ys, xs;
};

struct Corners {
  float values[4];  // top left, top right, bottom left, bottom right
};

// The corners of one cell, class by class.
template <typename T>
struct Cell {
  const T* first;
  int64_t next_class;
  int right, below;  // how many elements further

  __device__ Cell(const Source<T>& source, int64_t n, int y, int x)
      : first(source.data + n * source.strides[0] + y * source.strides[2] + x * source.strides[3]),
        next_class(source.strides[1]),
        right(x + 1 < source.xs.in ? static_cast<int>(source.strides[3]) : 0),
        below(y + 1 < source.ys.in ? static_cast<int>(source.strides[2]) : 0) {}

  __device__ Corners of_class(int c) const {
    const T* corner = first + c * next_class;
    return {static_cast<float>(corner[0]), static_cast<float>(corner[right]),
            static_cast<float>(corner[below]), static_cast<float>(corner[below + right])};
  }
};

// The classes that can win in a cell. None wins anywhere whose highest corner is below the lowest
// corner of another: weights are not negative, so what is computed stays between the corners, but
// for four roundings of 2^-24 of it, for rows and again for columns. 2^-16 leaves room for both
// classes. NaN and infinities obey nothing of it: then every class may win.
struct Rivals {
  int num_classes;
  float limit;
  unsigned first_32;  // a bit for each that can win

  template <typename T>
  __device__ Rivals(const Cell<T>& cell, int num_classes)
      : num_classes(num_classes), limit(-INFINITY) {
    float zero = 0.0f;
    for (int c = 0; c < num_classes; ++c) {
      const Corners corners = cell.of_class(c);
      const float* v = corners.values;
      limit = fmaxf(limit, fminf(fminf(v[0], v[1]), fminf(v[2], v[3])));
      zero += (v[0] + v[1] + v[2] + v[3]) * 0.0f;
    }
    limit = zero == 0.0f ? limit - (fabsf(limit) * 0x1p-16f + 4 * FLT_MIN) : -INFINITY;
    first_32 = find(cell, 0);
  }

  template <typename T>
  __device__ unsigned find(const Cell<T>& cell, int first) const {
    unsigned can_win = 0;
    for (int c = first; c < min(first + 32, num_classes); ++c) {
      const Corners corners = cell.of_class(c);
      const float* v = corners.values;
      const float highest = fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3]));
      can_win |= static_cast<unsigned>(!(highest < limit)) << (c - first);
    }
    return can_win;
  }
};

template <int side>
struct Weights {  // of the pixels from `begin` on, which lie in one cell
  float low[side], high[side];

  __device__ Weights(const Axis& axis, int cell, int begin) {
#pragma unroll
    for (int i = 0; i < side; ++i) {
      high[i] = exact_position(begin + i, axis.scale, axis.align_corners) - static_cast<float>(cell);
      low[i] = 1.0f - high[i];
    }
  }
};

// Calls use(row, column, value) for side x side pixels.
template <int side, typename Use>
__device__ void interpolate(const Corners& corners, const Weights<side>& ys,
                            const Weights<side>& xs, const Use& use) {
  const float* v = corners.values;
#pragma unroll
  for (int i = 0; i < side; ++i) {
    const float left = ys.low[i] * v[0] + ys.high[i] * v[2];
    const float right = ys.low[i] * v[1] + ys.high[i] * v[3];
#pragma unroll
    for (int j = 0; j < side; ++j) use(i, j, xs.low[j] * left + xs.high[j] * right);
  }
}

// Classifies side x side pixels of a cell and writes `rows` x `columns` of them.
template <int side, bool confident, typename T>
__device__ void classify(const Cell<T>& cell, const Rivals& rivals, const Weights<side>& ys,
                         const Weights<side>& xs, int rows, int columns, int width, uint8_t* pred,
                         float* confidence) {
  float best[side][side];
  int winner[side][side] = {};
#pragma unroll
  for (int i = 0; i < side * side; ++i) best[i / side][i % side] = -INFINITY;
  for (int first = 0; first < rivals.num_classes; first += 32) {
    unsigned candidates = first == 0 ? rivals.first_32 : rivals.find(cell, first);
    for (; candidates != 0; candidates &= candidates - 1) {
      const int c = first + __ffs(candidates) - 1;
      interpolate<side>(cell.of_class(c), ys, xs, [&](int i, int j, float value) {
        winner[i][j] = value > best[i][j] ? c : winner[i][j];
        best[i][j] = value > best[i][j] ? value : best[i][j];
      });
    }
  }
#pragma unroll
  for (int i = 0; i < side; ++i) {
#pragma unroll
    for (int j = 0; j < side; ++j) {
      if (i < rows && j < columns) {
        pred[static_cast<int64_t>(i) * width + j] = static_cast<uint8_t>(winner[i][j]);
      }
    }
  }
  if (!confident) return;
  float total[side][side] = {};
  for (int c = 0; c < rivals.num_classes; ++c) {
    interpolate<side>(cell.of_class(c), ys, xs, [&](int i, int j, float value) {
      total[i][j] += exp_of(value - best[i][j]);
    });
  }
#pragma unroll
  for (int i = 0; i < side; ++i) {
#pragma unroll
    for (int j = 0; j < side; ++j) {
      if (i < rows && j < columns) {
        confidence[static_cast<int64_t>(i) * width + j] =
            isfinite(best[i][j]) ? 1.0f / total[i][j] : 0.0f;
      }
    }
  }
}

// A thread for each pair of stretches: of cells, in passes of side x side pixels, or of single pixels
// where cells are small.
template <int side, bool confident, typename T>
__global__ void __launch_bounds__(kThreads, 2)
argmax_upsample_kernel(const Source<T> source, unsigned stretches_y,
                                       unsigned stretches_x, unsigned tiles, uint8_t* pred,
                                       float* confidence) {
  const unsigned tiles_in_row = (stretches_x + kThreads - 1) / kThreads;
  for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const unsigned number = tile % tiles_in_row * kThreads + threadIdx.x;
    const unsigned row = tile / tiles_in_row;
    if (number >= stretches_x) continue;
    const int64_t n = row / stretches_y;
    const int y_number = static_cast<int>(row % stretches_y), x_number = static_cast<int>(number);
    Stretch ys{source.ys.cell_of(y_number), y_number, y_number + 1};
    Stretch xs{source.xs.cell_of(x_number), x_number, x_number + 1};
    if (side > 1) {
      ys = part_of_cell(source.ys, y_number);
      xs = part_of_cell(source.xs, x_number);
    }
    if (ys.begin >= ys.end || xs.begin >= xs.end) continue;
    const Cell<T> cell(source, n, ys.cell, xs.cell);
    const Rivals rivals(cell, source.num_classes);
    const int width = source.xs.out;
    for (int y = ys.begin; y < ys.end; y += side) {
      const Weights<side> down(source.ys, ys.cell, y);
      for (int x = xs.begin; x < xs.end; x += side) {
        const Weights<side> across(source.xs, xs.cell, x);
        const int64_t at = (n * source.ys.out + y) * width + x;
        classify<side, confident>(cell, rivals, down, across, ys.end - y, xs.end - x, width,
                                  pred + at, confidence + at);
      }
    }
  }
}

template <typename T>
void launch_argmax_upsample(const at::Tensor& given, bool align_corners, at::Tensor& pred,
                            float* confidence) {
  constexpr int64_t kMost = int64_t{1} << 30;  // what an int can be added to
  const bool far = std::max({given.stride(2), given.stride(3), int64_t{0}}) >= kMost;
  const at::Tensor logits = far ? given.contiguous() : given;
  const Axis ys(logits.size(2), pred.size(1), align_corners, kPasses * kSide);
  const Axis xs(logits.size(3), pred.size(2), align_corners, kSide);
  const Source<T> source{
      logits.const_data_ptr<T>(),
      {logits.stride(0), logits.stride(1), logits.stride(2), logits.stride(3)},
      static_cast<int>(logits.size(1)), ys, xs};
  const bool cells = ys.out / 2 >= ys.in && xs.out / 2 >= xs.in;
  const int64_t stretches_y = cells ? int64_t{ys.in} * ys.parts : ys.out;
  const int64_t stretches_x = cells ? int64_t{xs.in} * xs.parts : xs.out;
  const int64_t tiles = logits.size(0) * stretches_y * ((stretches_x + kThreads - 1) / kThreads);
  TORCH_CHECK(std::max({tiles, logits.size(2), logits.size(3), pred.size(1), pred.size(2)}) < kMost,
              "more than CUDA's argmax_upsample can number: ", given.sizes(), " to ", pred.sizes());
  const auto kernel = [&] {
    if (confidence) {
      return cells ? &argmax_upsample_kernel<kSide, true, T> : &argmax_upsample_kernel<1, true, T>;
    }
    return cells ? &argmax_upsample_kernel<kSide, false, T> : &argmax_upsample_kernel<1, false, T>;
  }();
  kernel<<<blocks_for(tiles * kThreads, 64), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      source, static_cast<unsigned>(stretches_y), static_cast<unsigned>(stretches_x),
      static_cast<unsigned>(tiles), pred.mutable_data_ptr<uint8_t>(), confidence);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor> argmax_upsample(const at::Tensor& logits, at::IntArrayRef size,
                                                   bool align_corners, bool with_confidence) {
  check_argmax_upsample(logits, size);
  const c10::cuda::CUDAGuard guard(logits.device());
  at::Tensor pred = at::empty({logits.size(0), size[0], size[1]}, logits.options().dtype(at::kByte));
  at::Tensor confidence = at::empty(with_confidence ? pred.sizes() : at::IntArrayRef({0}),
                                    logits.options().dtype(at::kFloat));
  if (pred.numel() == 0) return {pred, confidence};
  float* confidences = with_confidence ? confidence.mutable_data_ptr<float>() : nullptr;
  switch (logits.scalar_type()) {
    case at::kFloat: launch_argmax_upsample<float>(logits, align_corners, pred, confidences); break;
    case at::kHalf: launch_argmax_upsample<at::Half>(logits, align_corners, pred, confidences); break;
    default: launch_argmax_upsample<at::BFloat16>(logits, align_corners, pred, confidences);
  }
  return {pred, confidence};
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("argmax_upsample", &argmax_upsample);
}
