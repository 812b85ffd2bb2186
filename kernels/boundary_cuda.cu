// boundary_map with CUDA. What it computes is defined in reference.py, bit for bit.
//
// What bounds it: two kernels, along rows and then down columns, each of which reads a byte or two
// and writes one a pixel. A thread walks kStretch pixels and the radius before and behind them, so
// it reads 1 + 2 * radius / kStretch bytes a pixel, from the first cache where threads overlap.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "launch.h"

namespace {

constexpr int kStretch = 32;  // pixels of an axis that one thread finds

// Whether ids change inside the window of columns around each pixel of a row. `latest` is the last
// column that differs from the one to its right.
__global__ void change_in_rows(const uint8_t* label, int64_t rows, int64_t width, int64_t radius,
                               uint8_t* found) {
  const int64_t stretches = (width + kStretch - 1) / kStretch;
  for (int64_t task = blockIdx.x * int64_t{kThreads} + threadIdx.x; task < rows * stretches;
       task += static_cast<int64_t>(gridDim.x) * kThreads) {
    const uint8_t* row = label + task / stretches * width;
    const int64_t begin = task % stretches * kStretch, end = min(begin + kStretch, width);
    int64_t next = max(begin - radius, int64_t{0}), latest = -1;
    for (int64_t x = begin; x < end; ++x) {
      for (; next < min(x + radius, width - 1); ++next) {
        if (row[next] != row[next + 1]) latest = next;
      }
      found[task / stretches * width + x] = latest >= 0 && latest >= x - radius;
    }
  }
}

// The same down the columns, where what was found in a row counts as well: if no row of the window
// has a change, its rows differ only if its middle column does.
__global__ void change_in_columns(const uint8_t* label, const uint8_t* in_row, int64_t samples,
                                  int64_t height, int64_t width, int64_t radius, bool border,
                                  bool* result) {
  const int64_t stretches = (height + kStretch - 1) / kStretch;
  for (int64_t task = blockIdx.x * int64_t{kThreads} + threadIdx.x;
       task < samples * stretches * width; task += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t x = task % width, begin = task / width % stretches * kStretch;
    const int64_t end = min(begin + kStretch, height);
    const int64_t corner = task / width / stretches * height * width + x;
    int64_t next = max(begin - radius, int64_t{0}), latest = -1;
    for (int64_t y = begin; y < end; ++y) {
      for (; next <= min(y + radius, height - 1); ++next) {
        const int64_t at = corner + next * width;
        if (next > 0 && label[at] != label[at - width]) latest = max(latest, next - 1);
        if (in_row[at]) latest = next;
      }
      const bool outside = border && radius > 0 &&
                           (y < radius || y + radius >= height || x < radius || x + radius >= width);
      result[corner + y * width] = outside || (latest >= 0 && latest >= y - radius);
    }
  }
}

at::Tensor boundary_map(const at::Tensor& label, int64_t radius, bool border) {
  check_boundary_map(label, radius);
  const c10::cuda::CUDAGuard guard(label.device());
  const at::Tensor ids = label.contiguous();
  const int64_t samples = ids.size(0), height = ids.size(1), width = ids.size(2);
  radius = std::min(radius, std::max(height, width));
  const auto boolean = ids.options().dtype(at::kBool);
  if (radius == 0 || ids.numel() == 0) return at::zeros(ids.sizes(), boolean);
  const at::Tensor in_row = at::empty(ids.sizes(), ids.options());
  at::Tensor result = at::empty(ids.sizes(), boolean);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t across = samples * height * ((width + kStretch - 1) / kStretch);
  change_in_rows<<<blocks_for(across), kThreads, 0, stream>>>(
      ids.const_data_ptr<uint8_t>(), samples * height, width, radius,
      in_row.mutable_data_ptr<uint8_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t down = samples * width * ((height + kStretch - 1) / kStretch);
  change_in_columns<<<blocks_for(down), kThreads, 0, stream>>>(
      ids.const_data_ptr<uint8_t>(), in_row.const_data_ptr<uint8_t>(), samples, height, width,
      radius, border, result.mutable_data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("boundary_map", &boundary_map);
}
