// boundary_map on CPUs. What it computes is defined in reference.py, bit for bit.
//
// What bounds it: one byte is read and one written a pixel. A row costs two comparisons and two ages
// of two bytes a pixel, and log2(radius) steps that widen what was found: everything is in vectors
// and in the first cache, so the radius hardly counts.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "checks.h"
#include "cpu.h"

namespace {

// Rows since ids last changed: to the right of a pixel, or from the row above to it. kMostRadius
// keeps twice the radius below the highest age, which means never.
typedef uint16_t Age;
constexpr Age kNever = std::numeric_limits<Age>::max();

CLONED void update_ages(const uint8_t* row, const uint8_t* above, int64_t width, Age* to_right,
                        Age* from_above) {
  for (int64_t x = 0; x + 1 < width; ++x) {
    const Age older = to_right[x] + (to_right[x] != kNever);
    to_right[x] = row[x] != row[x + 1] ? 0 : older;
  }
  for (int64_t x = 0; x < width; ++x) {
    const Age older = from_above[x] + (from_above[x] != kNever);
    from_above[x] = row[x] != above[x] ? 0 : older;
  }
}

// Marks pixels that have a change in their window of `side` = 2 * radius + 1 columns and of the rows
// whose changes are at most `age` old. One between rows is as old as the lower of the two.
// wide: two buffers of width + side bytes, of which the first begins with `radius` zeros.
CLONED void mark(const Age* to_right, const Age* from_above, int64_t width, int64_t radius, Age age,
                 uint8_t* __restrict wide, uint8_t* __restrict wider, uint8_t* __restrict out) {
  const int64_t length = width + 2 * radius;
  std::memset(wide, 0, length);
  for (int64_t x = 0; x < width; ++x) {
    const uint8_t vertical = from_above[x] < age;  // both rows are in the window
    out[x] = vertical;
    wide[radius + x] = vertical | (to_right[x] <= age);
  }
  // out[x] = wide[x + radius - radius .. x + 2 * radius - 1], or a change between rows at the last
  // column: a change to the right is in the window if both its columns are
  for (int64_t x = 0; x + radius < width; ++x) wider[x] = out[x + radius];
  for (int64_t x = std::max<int64_t>(width - radius, 0); x < width; ++x) wider[x] = 0;
  std::memcpy(out, wider, width);
  int64_t covered = 1;
  for (; 2 * covered <= 2 * radius; covered *= 2) {
    for (int64_t x = 0; x + covered < length; ++x) wider[x] = wide[x] | wide[x + covered];
    std::memcpy(wider + length - covered, wide + length - covered, covered);
    std::swap(wide, wider);
  }
  const int64_t rest = 2 * radius - covered;
  for (int64_t x = 0; x < width; ++x) out[x] |= wide[x] | wide[x + rest];
}

void mark_border(int64_t y, int64_t height, int64_t width, int64_t radius, uint8_t* out) {
  const bool whole = y < radius || y + radius >= height;
  const int64_t side = whole ? width : std::min(radius, width);
  std::memset(out, 1, side);
  std::memset(out + width - side, 1, side);
}

at::Tensor boundary_map(const at::Tensor& label, int64_t radius, bool border) {
  check_boundary_map(label, radius);
  const at::Tensor ids = label.contiguous();
  at::Tensor result = at::empty(ids.sizes(), at::kBool);
  const int64_t height = ids.size(1), width = ids.size(2);
  if (result.numel() == 0) return result;
  radius = std::min(radius, std::max(height, width));
  uint8_t* out = reinterpret_cast<uint8_t*>(result.mutable_data_ptr<bool>());
  if (radius == 0) {
    std::memset(out, 0, result.numel());
    return result;
  }
  // a part begins with the rows above it, which are to be few beside its own
  const int64_t grain = std::max(kGrain / width + 1, 4 * radius);
  at::parallel_for(0, ids.size(0) * height, grain, [&](int64_t begin, int64_t end) {
    std::vector<Age> to_right(width), from_above(width);
    std::vector<uint8_t> wide(width + 2 * radius), wider(width + 2 * radius);
    int64_t next = 0;  // row of the sample that is to be read
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % height, last = std::min(y + radius, height - 1);
      const uint8_t* sample = ids.const_data_ptr<uint8_t>() + (row - y) * width;
      if (row == begin || y == 0) {
        std::fill(to_right.begin(), to_right.end(), kNever);
        std::fill(from_above.begin(), from_above.end(), kNever);
        next = std::max<int64_t>(y - radius, 0);
      }
      for (; next <= last; ++next) {
        const uint8_t* here = sample + next * width;
        update_ages(here, next > 0 ? here - width : here, width, to_right.data(), from_above.data());
      }
      const Age age = static_cast<Age>(last - std::max<int64_t>(y - radius, 0));
      mark(to_right.data(), from_above.data(), width, radius, age, wide.data(), wider.data(),
           out + row * width);
      if (border) mark_border(y, height, width, radius, out + row * width);
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("boundary_map", &boundary_map);
}
