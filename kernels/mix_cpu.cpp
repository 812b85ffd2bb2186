// Mixing on CPUs. What is computed is defined in reference.py, bit for bit.
//
// What bounds it is memory: cutmix reads what it takes and writes it, classmix reads both sides and
// the label. A row is planned once for all entries and channels.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "checks.h"
#include "cpu.h"

namespace {

struct Entry {
  at::Tensor a, b, out;
  int64_t channels, element_bytes;
};

// Calls write_row(plan, a, b, out, bytes of an element) for each row of each entry and channel,
// where plan = make_plan(n, y) is made once for all of them. Returns the outputs.
template <typename MakePlan, typename WriteRow>
std::vector<at::Tensor> mix(at::TensorList a, at::TensorList b, const MakePlan& make_plan,
                            const WriteRow& write_row) {
  std::vector<Entry> entries;
  std::vector<at::Tensor> results;
  for (size_t i = 0; i < a.size(); ++i) {
    results.push_back(at::empty(a[i].sizes(), a[i].options()));
    entries.push_back({a[i].contiguous(), b[i].contiguous(), results[i],
                       a[i].dim() == 4 ? a[i].size(1) : 1,
                       static_cast<int64_t>(a[i].element_size())});
  }
  const int64_t samples = a[0].size(0), height = a[0].size(-2), width = a[0].size(-1);
  const int64_t grain = kGrain / std::max<int64_t>(width, 1) + 1;
  at::parallel_for(0, samples * height, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      const auto plan = make_plan(n, y);
      for (const Entry& entry : entries) {
        const int64_t bytes = entry.element_bytes;
        for (int64_t c = 0; c < entry.channels; ++c) {
          const int64_t at = ((n * entry.channels + c) * height + y) * width * bytes;
          write_row(plan, static_cast<const char*>(entry.a.const_data_ptr()) + at,
                    static_cast<const char*>(entry.b.const_data_ptr()) + at,
                    static_cast<char*>(entry.out.mutable_data_ptr()) + at, bytes);
        }
      }
    }
  });
  return results;
}

using Intervals = std::vector<std::pair<int64_t, int64_t>>;

std::vector<at::Tensor> cutmix(at::TensorList a, at::TensorList b, const at::Tensor& boxes) {
  check_cutmix(a, b, boxes);
  const at::Tensor contiguous_boxes = boxes.contiguous();
  const int64_t* first_box = contiguous_boxes.const_data_ptr<int64_t>();
  const int64_t width = a[0].size(-1), num_boxes = boxes.size(1);
  const auto columns_of_b = [&](int64_t n, int64_t y) {
    Intervals columns;
    for (int64_t k = 0; k < num_boxes; ++k) {
      const int64_t* box = first_box + (n * num_boxes + k) * 4;
      const int64_t x0 = std::max<int64_t>(box[0], 0), x1 = std::min(box[2], width);
      if (box[1] <= y && y < box[3] && x0 < x1) columns.emplace_back(x0, x1);
    }
    std::sort(columns.begin(), columns.end());
    return columns;
  };
  return mix(a, b, columns_of_b, [width](const Intervals& columns, const char* a_row,
                                         const char* b_row, char* out, int64_t bytes) {
    int64_t done = 0;
    for (const auto& [x0, x1] : columns) {
      const int64_t begin = std::max(x0 * bytes, done), end = std::max(x1 * bytes, done);
      std::memcpy(out + done, a_row + done, begin - done);
      std::memcpy(out + begin, b_row + begin, end - begin);
      done = end;
    }
    std::memcpy(out + done, a_row + done, width * bytes - done);
  });
}

template <typename T>
INLINE void blend_as(const uint8_t* take_b, const void* a, const void* b, void* out, int64_t width) {
  const T *a_row = static_cast<const T*>(a), *b_row = static_cast<const T*>(b);
  T* out_row = static_cast<T*>(out);
  for (int64_t x = 0; x < width; ++x) out_row[x] = take_b[x] ? b_row[x] : a_row[x];
}

CLONED void blend(const std::vector<uint8_t>& take_b, const void* a, const void* b, void* out,
                  int64_t element_bytes) {
  const int64_t width = static_cast<int64_t>(take_b.size());
  switch (element_bytes) {
    case 1: return blend_as<uint8_t>(take_b.data(), a, b, out, width);
    case 2: return blend_as<uint16_t>(take_b.data(), a, b, out, width);
    case 4: return blend_as<uint32_t>(take_b.data(), a, b, out, width);
    case 8: return blend_as<uint64_t>(take_b.data(), a, b, out, width);
    default: return blend_as<unsigned __int128>(take_b.data(), a, b, out, width);
  }
}

std::vector<at::Tensor> classmix(at::TensorList a, at::TensorList b, const at::Tensor& label,
                                 const at::Tensor& classes) {
  check_classmix(a, b, label, classes);
  const int64_t height = a[0].size(-2), width = a[0].size(-1);
  const at::Tensor contiguous_label = label.contiguous(), table = classes.contiguous();
  const auto mask = [&](int64_t n, int64_t y) {
    const uint8_t* ids = contiguous_label.const_data_ptr<uint8_t>() + (n * height + y) * width;
    // Bools, whose bytes need not be 0 and 1.
    const uint8_t* chosen = static_cast<const uint8_t*>(table.const_data_ptr()) + n * 256;
    std::vector<uint8_t> take_b(width);
    for (int64_t x = 0; x < width; ++x) take_b[x] = chosen[ids[x]];
    return take_b;
  };
  return mix(a, b, mask, blend);
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("cutmix", &cutmix);
  library.impl("classmix", &classmix);
}
