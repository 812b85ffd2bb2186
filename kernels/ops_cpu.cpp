// The kernels of segshift for CPUs. What they compute is defined in reference.py, bit for bit.
//
// What bounds each one (P pixels, M members, C classes):
//   confusion_matrix      reads the P predictions and labels; 32 equal neighbours are counted at
//                         once, other pixels cost one read-modify-write each (about 2 cycles).
//   argmax_upsample       writes P bytes; where no class clearly wins a cell of the source, 9 vector
//                         operations per class and 8 pixels.
//   cutmix, classmix      memory: every byte is read and written once (classmix reads a and b).
//   hard_vote             reads M * P bytes and writes P; M * (M - 1) / 2 byte comparisons a pixel.
//   confidence_histogram  reads 5 * P bytes, then counts as confusion_matrix does.
//
// Build folders are shared between machines, so the library must run on any of them: functions
// marked CLONED are compiled for three x86-64 levels, and the loader picks one. They only touch
// plain arrays, and what they call is inlined into them.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif
#define INLINE __attribute__((always_inline)) inline

namespace {

constexpr int64_t kGrain = 32768;  // pixels that are worth waking a thread

void check_classes(int64_t num_classes) {
  TORCH_CHECK(num_classes >= 1 && num_classes <= 256, "num_classes must be 1..256, got ",
              num_classes);
}

// ---- counting: confusion_matrix, confidence_histogram ------------------------------------------

constexpr int64_t kBlock = 1024;  // pixels whose cell indices are written, then counted
constexpr int64_t kRun = 32;      // neighbours counted at once if they are equal
constexpr int64_t kCopies = 4;    // counters per cell, so that an increment need not await the last

CLONED void count_indices(const int32_t* index, int64_t count, int64_t* counters) {
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun) {
    int32_t differing = 0;
    for (int64_t j = 0; j < kRun; ++j) differing |= index[i + j] ^ index[i];
    if (differing == 0) {
      counters[index[i] * kCopies] += kRun;
    } else {
      for (int64_t j = 0; j < kRun; ++j) ++counters[index[i + j] * kCopies + j % kCopies];
    }
  }
  for (; i < count; ++i) ++counters[index[i] * kCopies];
}

// Counts into `cells` cells, of which the first `kept` are returned.
// write_indices(first, count, index) says to which cells the pixels from `first` on belong.
template <typename WriteIndices>
at::Tensor histogram(int64_t pixels, int64_t cells, int64_t kept, const WriteIndices& write_indices) {
  at::Tensor result = at::zeros({kept}, at::kLong);
  int64_t* total = result.mutable_data_ptr<int64_t>();
  std::mutex mutex;
  at::parallel_for(0, pixels, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> counters(cells * kCopies);
    int32_t index[kBlock];
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = std::min(kBlock, end - first);
      write_indices(first, count, index);
      count_indices(index, count, counters.data());
    }
    const std::lock_guard<std::mutex> guard(mutex);
    for (int64_t i = 0; i < kept * kCopies; ++i) total[i / kCopies] += counters[i];
  });
  return result;
}

template <typename T>
INLINE int32_t class_or_spare(T id, int32_t num_classes) {
  using Unsigned = std::make_unsigned_t<T>;  // in which a negative id is a large one
  using Compared = std::common_type_t<Unsigned, uint32_t>;
  const bool valid = static_cast<Unsigned>(id) < static_cast<Compared>(num_classes);
  return valid ? static_cast<int32_t>(id) : num_classes;
}

// Rows of the matrix: the classes, the spare one, and one more for ignored pixels.
template <typename T>
INLINE void write_rows(const void* labels, int64_t first, int64_t count, int32_t num_classes,
                       int64_t ignore_index, int32_t* index) {
  const T* label = static_cast<const T*>(labels) + first;
  const T ignored = static_cast<T>(ignore_index);
  const bool can_be_ignored = static_cast<int64_t>(ignored) == ignore_index;
  const int32_t side = num_classes + 1;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t row = class_or_spare(label[i], num_classes);
    index[i] = side * (can_be_ignored && label[i] == ignored ? side : row);
  }
}

template <typename T>
INLINE void add_columns(const void* preds, int64_t first, int64_t count, int32_t num_classes,
                        int32_t* index) {
  const T* pred = static_cast<const T*>(preds) + first;
  for (int64_t i = 0; i < count; ++i) index[i] += class_or_spare(pred[i], num_classes);
}

CLONED void matrix_indices(const void* pred, at::ScalarType pred_type, const void* label,
                           at::ScalarType label_type, int64_t first, int64_t count,
                           int32_t num_classes, int64_t ignore_index, int32_t* index) {
  switch (label_type) {
    case at::kByte: write_rows<uint8_t>(label, first, count, num_classes, ignore_index, index); break;
    case at::kInt: write_rows<int32_t>(label, first, count, num_classes, ignore_index, index); break;
    default: write_rows<int64_t>(label, first, count, num_classes, ignore_index, index);
  }
  switch (pred_type) {
    case at::kByte: add_columns<uint8_t>(pred, first, count, num_classes, index); break;
    case at::kInt: add_columns<int32_t>(pred, first, count, num_classes, index); break;
    default: add_columns<int64_t>(pred, first, count, num_classes, index);
  }
}

void check_ids(const at::Tensor& ids, const char* name) {
  const at::ScalarType type = ids.scalar_type();
  TORCH_CHECK(type == at::kByte || type == at::kInt || type == at::kLong, name,
              " must be uint8, int32 or int64, got ", type);
}

at::Tensor confusion_matrix(const at::Tensor& pred, const at::Tensor& label, int64_t num_classes,
                            int64_t ignore_index) {
  check_classes(num_classes);
  check_ids(pred, "pred");
  check_ids(label, "label");
  TORCH_CHECK(pred.sizes() == label.sizes(), "pred and label differ in shape: ", pred.sizes(),
              " and ", label.sizes());
  const at::Tensor pred_ = pred.contiguous(), label_ = label.contiguous();
  const int64_t side = num_classes + 1;
  const auto write_indices = [&, p = pred_.const_data_ptr(), l = label_.const_data_ptr()](
                                 int64_t first, int64_t count, int32_t* index) {
    matrix_indices(p, pred_.scalar_type(), l, label_.scalar_type(), first, count,
                   static_cast<int32_t>(num_classes), ignore_index, index);
  };
  return histogram(pred_.numel(), (side + 1) * side, side * side, write_indices).view({side, side});
}

CLONED void confidence_indices(const float* confidence, const uint8_t* pred, int64_t count,
                               int32_t num_classes, int32_t bins, int32_t* index) {
  const float scale = static_cast<float>(bins), last = static_cast<float>(bins - 1);
  for (int64_t i = 0; i < count; ++i) {
    const float position = confidence[i] * scale;
    float column = position > 0 ? position : 0;  // NaN too, which is left out below
    column = column < last ? column : last;
    const bool counted = pred[i] < num_classes && position == position;
    index[i] = counted ? pred[i] * bins + static_cast<int32_t>(column) : num_classes * bins;
  }
}

at::Tensor confidence_histogram(const at::Tensor& confidence, const at::Tensor& pred,
                                int64_t num_classes, int64_t bins) {
  check_classes(num_classes);
  TORCH_CHECK(bins >= 1 && bins <= 4096, "bins must be 1..4096, got ", bins);
  TORCH_CHECK(confidence.scalar_type() == at::kFloat, "confidence must be float32, got ",
              confidence.scalar_type());
  TORCH_CHECK(pred.scalar_type() == at::kByte, "pred must be uint8, got ", pred.scalar_type());
  TORCH_CHECK(confidence.sizes() == pred.sizes(), "confidence and pred differ in shape: ",
              confidence.sizes(), " and ", pred.sizes());
  const at::Tensor confidence_ = confidence.contiguous(), pred_ = pred.contiguous();
  const auto write_indices = [&, f = confidence_.const_data_ptr<float>(),
                              p = pred_.const_data_ptr<uint8_t>()](int64_t first, int64_t count,
                                                                   int32_t* index) {
    confidence_indices(f + first, p + first, count, static_cast<int32_t>(num_classes),
                       static_cast<int32_t>(bins), index);
  };
  const int64_t cells = num_classes * bins;
  return histogram(pred_.numel(), cells + 1, cells, write_indices).view({num_classes, bins});
}

// ---- argmax_upsample ---------------------------------------------------------------------------

constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// Where the outputs along one axis take their values from; padded to whole vectors.
struct Axis {
  std::vector<int32_t> low, high;
  std::vector<float> low_weight, high_weight;
};

Axis make_axis(int64_t in, int64_t out, bool align_corners) {
  const float scale = align_corners ? static_cast<float>(in - 1) / std::max<float>(out - 1, 1)
                                    : static_cast<float>(in) / std::max<float>(out, 1);
  Axis axis{std::vector<int32_t>(out), std::vector<int32_t>(out), std::vector<float>(out + kLanes),
            std::vector<float>(out + kLanes)};
  for (int64_t i = 0; i < out; ++i) {
    const float at = static_cast<float>(i);
    const float position = align_corners ? at * scale : std::max((at + 0.5f) * scale - 0.5f, 0.0f);
    axis.low[i] = static_cast<int32_t>(std::min(static_cast<int64_t>(position), in - 1));
    axis.high[i] = static_cast<int32_t>(std::min<int64_t>(axis.low[i] + 1, in - 1));
    axis.high_weight[i] = position - static_cast<float>(axis.low[i]);
    axis.low_weight[i] = 1.0f - axis.high_weight[i];
  }
  return axis;
}

// One row of the source, as float32 [w][C], and the class that clearly wins each of its columns.
struct SourceRow {
  int64_t plane_row = -1;  // n * h + y
  std::vector<float> logits;
  std::vector<int16_t> winner;  // -1: no clear one
};

// A class is a clear winner if its lead over the second exceeds what rounding can take away. If
// one class clearly wins the four corners of a cell, it wins everywhere inside: with weights that
// are not negative, the interpolated lead is at least the same mean of the leads, less 4 roundings
// of 2^-24 relative to the same mean of the values, twice (rows, then columns). 2^-18 leaves room.
// NaN and infinite values are never clear.
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

template <typename T>
void load_row(const at::Tensor& logits, int64_t n, int64_t y, float* row) {
  const int64_t num_classes = logits.size(1), width = logits.size(3);
  const T* source = logits.const_data_ptr<T>() + n * logits.stride(0) + y * logits.stride(2);
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < num_classes; ++c) {
      row[x * num_classes + c] =
          static_cast<float>(source[c * logits.stride(1) + x * logits.stride(3)]);
    }
  }
}

void load(const at::Tensor& logits, int64_t n, int64_t y, SourceRow& row) {
  if (row.plane_row == n * logits.size(2) + y) return;
  row.plane_row = n * logits.size(2) + y;
  row.logits.resize(logits.size(1) * logits.size(3));
  row.winner.resize(logits.size(3));
  switch (logits.scalar_type()) {
    case at::kFloat: load_row<float>(logits, n, y, row.logits.data()); break;
    case at::kHalf: load_row<at::Half>(logits, n, y, row.logits.data()); break;
    default: load_row<at::BFloat16>(logits, n, y, row.logits.data());
  }
  find_clear_winners(row.logits.data(), logits.size(3), logits.size(1), row.winner.data());
}

INLINE Floats load_floats(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// exp as reference.py evaluates it; adding and subtracting 1.5 * 2^23 rounds to an integer.
INLINE Floats exp_of(Floats x) {
  x = x > -87.0f ? x : Floats{} - 87.0f;
  const Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats value = Floats{} + static_cast<float>(1.0 / 720);
  value = value * r + static_cast<float>(1.0 / 120);
  value = value * r + static_cast<float>(1.0 / 24);
  value = value * r + static_cast<float>(1.0 / 6);
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  return value * power;
}

struct Span {  // output columns that lie between the same two source columns
  int64_t begin, end;
  int32_t left, right;
};

// Fills one output row; may write up to kLanes - 1 elements past it. `columns` is room for 2 * C.
CLONED void fill_row(const SourceRow& top, const SourceRow& bottom, float top_weight,
                     float bottom_weight, int64_t num_classes, const std::vector<Span>& spans,
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
    const int64_t at_left = span.left * num_classes, at_right = span.right * num_classes;
    for (int64_t c = 0; c < num_classes; ++c) {
      left[c] = top_weight * top.logits[at_left + c] + bottom_weight * bottom.logits[at_left + c];
      right[c] = top_weight * top.logits[at_right + c] + bottom_weight * bottom.logits[at_right + c];
    }
    for (int64_t x = span.begin; x < span.end; x += kLanes) {
      const Floats a = load_floats(&xs.low_weight[x]), b = load_floats(&xs.high_weight[x]);
      Floats best = Floats{} - std::numeric_limits<float>::infinity();
      Ints winner{};
      for (int32_t c = 0; c < num_classes; ++c) {
        const Floats value = a * left[c] + b * right[c];
        const Ints better = value > best;
        best = better ? value : best;
        winner = better ? Ints{} + c : winner;
      }
      const Bytes ids = __builtin_convertvector(winner, Bytes);
      std::memcpy(out + x, &ids, kLanes);
      if (!confidence) continue;
      Floats total{};
      for (int64_t c = 0; c < num_classes; ++c) total += exp_of(a * left[c] + b * right[c] - best);
      const Floats share = best - best == 0.0f ? 1.0f / total : Floats{};
      std::memcpy(confidence + x, &share, sizeof(share));
    }
  }
}

std::tuple<at::Tensor, at::Tensor> argmax_upsample(const at::Tensor& logits, at::IntArrayRef size,
                                                   bool align_corners, bool with_confidence) {
  const at::ScalarType type = logits.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "logits must be float32, bfloat16 or float16, got ", type);
  TORCH_CHECK(logits.dim() == 4, "logits must be [N, C, h, w], got ", logits.sizes());
  TORCH_CHECK(size.size() == 2, "size must be (H, W), got ", size);
  check_classes(logits.size(1));
  TORCH_CHECK(logits.size(2) > 0 && logits.size(3) > 0, "logits have no rows or no columns");
  TORCH_CHECK(size[0] >= 0 && size[1] >= 0, "size must not be negative, got ", size);
  const int64_t samples = logits.size(0), num_classes = logits.size(1);
  const int64_t height = size[0], width = size[1];
  at::Tensor pred = at::empty({samples, height, width}, logits.options().dtype(at::kByte));
  at::Tensor confidence = at::empty(
      with_confidence ? pred.sizes() : at::IntArrayRef({0}), logits.options().dtype(at::kFloat));
  if (pred.numel() == 0) return {pred, confidence};

  const Axis ys = make_axis(logits.size(2), height, align_corners);
  const Axis xs = make_axis(logits.size(3), width, align_corners);
  std::vector<Span> spans;
  for (int64_t x = 0; x < width; ++x) {
    if (x == 0 || xs.low[x] != xs.low[x - 1]) spans.push_back({x, x, xs.low[x], xs.high[x]});
    spans.back().end = x + 1;
  }
  uint8_t* pred_data = pred.mutable_data_ptr<uint8_t>();
  float* confidence_data = confidence.mutable_data_ptr<float>();
  at::parallel_for(0, samples * height, kGrain / width + 1, [&](int64_t begin, int64_t end) {
    SourceRow top, bottom;
    std::vector<float> columns(2 * num_classes), confidence_row(with_confidence ? width + kLanes : 0);
    std::vector<uint8_t> pred_row(width + kLanes);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      if (bottom.plane_row == n * logits.size(2) + ys.low[y]) std::swap(top, bottom);
      load(logits, n, ys.low[y], top);
      load(logits, n, ys.high[y], bottom);
      fill_row(top, bottom, ys.low_weight[y], ys.high_weight[y], num_classes, spans, xs,
               columns.data(), pred_row.data(), with_confidence ? confidence_row.data() : nullptr);
      std::memcpy(pred_data + row * width, pred_row.data(), width);
      if (with_confidence) {
        std::memcpy(confidence_data + row * width, confidence_row.data(), width * sizeof(float));
      }
    }
  });
  return {pred, confidence};
}

// ---- cutmix, classmix --------------------------------------------------------------------------

// One tensor of a mix as rows of bytes: N samples of `channels` planes.
struct Entry {
  at::Tensor a, b, out;
  int64_t channels, row_bytes, element_bytes;
};

std::vector<Entry> make_entries(at::TensorList a, at::TensorList b) {
  TORCH_CHECK(!a.empty(), "there is nothing to mix");
  TORCH_CHECK(a.size() == b.size(), "a has ", a.size(), " entries, b has ", b.size());
  std::vector<Entry> entries;
  for (size_t i = 0; i < a.size(); ++i) {
    TORCH_CHECK(a[i].sizes() == b[i].sizes() && a[i].dtype() == b[i].dtype(), "a has ",
                a[i].sizes(), " ", a[i].dtype(), ", b has ", b[i].sizes(), " ", b[i].dtype());
    TORCH_CHECK(a[i].dim() == 3 || a[i].dim() == 4,
                "an entry must be [N, H, W] or [N, C, H, W], got ", a[i].dim(), "-D");
    TORCH_CHECK(a[i].size(0) == a[0].size(0) && a[i].size(-2) == a[0].size(-2) &&
                    a[i].size(-1) == a[0].size(-1),
                "entries differ in N, H or W: ", a[i].sizes(), " and ", a[0].sizes());
    const at::Tensor a_ = a[i].contiguous(), b_ = b[i].contiguous();
    const int64_t bytes = static_cast<int64_t>(a_.element_size());
    entries.push_back({a_, b_, at::empty(a_.sizes(), a_.options()), a_.dim() == 4 ? a_.size(1) : 1,
                       a_.size(-1) * bytes, bytes});
  }
  return entries;
}

std::vector<at::Tensor> outputs(const std::vector<Entry>& entries) {
  std::vector<at::Tensor> result;
  for (const Entry& entry : entries) result.push_back(entry.out);
  return result;
}

// Calls write_row(entry, n, y, offset in bytes of the row) for every row of every entry.
// prepare(n, y) is called before, once for all entries and channels.
template <typename Prepare, typename WriteRow>
void for_each_row(const std::vector<Entry>& entries, const Prepare& prepare,
                  const WriteRow& write_row) {
  const int64_t samples = entries[0].a.size(0);
  const int64_t height = entries[0].a.size(-2), width = entries[0].a.size(-1);
  at::parallel_for(0, samples * height, kGrain / std::max<int64_t>(width, 1) + 1,
                   [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      const auto plan = prepare(n, y);
      for (const Entry& entry : entries) {
        const auto* a = static_cast<const char*>(entry.a.const_data_ptr());
        const auto* b = static_cast<const char*>(entry.b.const_data_ptr());
        auto* out = static_cast<char*>(entry.out.mutable_data_ptr());
        for (int64_t c = 0; c < entry.channels; ++c) {
          const int64_t at = ((n * entry.channels + c) * height + y) * entry.row_bytes;
          write_row(entry, plan, a + at, b + at, out + at);
        }
      }
    }
  });
}

struct Segment {
  int64_t begin, end;
};

std::vector<at::Tensor> cutmix(at::TensorList a, at::TensorList b, const at::Tensor& boxes) {
  const std::vector<Entry> entries = make_entries(a, b);
  TORCH_CHECK(boxes.scalar_type() == at::kLong, "boxes must be int64, got ", boxes.scalar_type());
  TORCH_CHECK(boxes.dim() == 3 && boxes.size(0) == a[0].size(0) && boxes.size(2) == 4,
              "boxes must be [", a[0].size(0), ", K, 4], got ", boxes.sizes());
  const at::Tensor boxes_ = boxes.contiguous();
  const int64_t* box_data = boxes_.const_data_ptr<int64_t>();
  const int64_t width = a[0].size(-1), num_boxes = boxes.size(1);
  // The columns of b in a row, sorted.
  const auto segments = [&](int64_t n, int64_t y) {
    std::vector<Segment> result;
    for (const int64_t* box = box_data + n * num_boxes * 4, *end = box + num_boxes * 4; box < end;
         box += 4) {
      const int64_t x0 = std::max<int64_t>(box[0], 0), x1 = std::min(box[2], width);
      if (box[1] <= y && y < box[3] && x0 < x1) result.push_back({x0, x1});
    }
    std::sort(result.begin(), result.end(),
              [](const Segment& l, const Segment& r) { return l.begin < r.begin; });
    return result;
  };
  for_each_row(entries, segments, [](const Entry& entry, const std::vector<Segment>& of_b,
                                     const char* a, const char* b, char* out) {
    int64_t done = 0;
    for (const Segment& segment : of_b) {
      const int64_t begin = std::max(segment.begin * entry.element_bytes, done);
      const int64_t end = std::max(segment.end * entry.element_bytes, done);
      std::memcpy(out + done, a + done, begin - done);
      std::memcpy(out + begin, b + begin, end - begin);
      done = end;
    }
    std::memcpy(out + done, a + done, entry.row_bytes - done);
  });
  return outputs(entries);
}

template <typename T>
INLINE void blend_as(const uint8_t* take_b, const void* a, const void* b, void* out, int64_t width) {
  const T *a_ = static_cast<const T*>(a), *b_ = static_cast<const T*>(b);
  T* out_ = static_cast<T*>(out);
  for (int64_t x = 0; x < width; ++x) out_[x] = take_b[x] ? b_[x] : a_[x];
}

CLONED void blend(const uint8_t* take_b, const void* a, const void* b, void* out, int64_t width,
                  int64_t element_bytes) {
  switch (element_bytes) {
    case 1: blend_as<uint8_t>(take_b, a, b, out, width); break;
    case 2: blend_as<uint16_t>(take_b, a, b, out, width); break;
    case 4: blend_as<uint32_t>(take_b, a, b, out, width); break;
    case 8: blend_as<uint64_t>(take_b, a, b, out, width); break;
    default: blend_as<unsigned __int128>(take_b, a, b, out, width);  // complex128
  }
}

std::vector<at::Tensor> classmix(at::TensorList a, at::TensorList b, const at::Tensor& label,
                                 const at::Tensor& classes) {
  const std::vector<Entry> entries = make_entries(a, b);
  const int64_t samples = a[0].size(0), height = a[0].size(-2), width = a[0].size(-1);
  TORCH_CHECK(label.scalar_type() == at::kByte, "label must be uint8, got ", label.scalar_type());
  TORCH_CHECK(label.sizes() == at::IntArrayRef({samples, height, width}), "label must be [",
              samples, ", ", height, ", ", width, "], got ", label.sizes());
  TORCH_CHECK(classes.scalar_type() == at::kBool &&
                  classes.sizes() == at::IntArrayRef({samples, 256}),
              "classes must be bool [", samples, ", 256], got ", classes.scalar_type(), " ",
              classes.sizes());
  const at::Tensor label_ = label.contiguous(), classes_ = classes.contiguous();
  const auto* label_data = label_.const_data_ptr<uint8_t>();
  const auto* class_data = classes_.const_data_ptr<bool>();
  const auto mask = [&](int64_t n, int64_t y) {
    std::vector<uint8_t> take_b(width);
    const uint8_t* row = label_data + (n * height + y) * width;
    for (int64_t x = 0; x < width; ++x) take_b[x] = class_data[n * 256 + row[x]];
    return take_b;
  };
  for_each_row(entries, mask, [width](const Entry& entry, const std::vector<uint8_t>& take_b,
                                      const char* a, const char* b, char* out) {
    blend(take_b.data(), a, b, out, width, entry.element_bytes);
  });
  return outputs(entries);
}

// ---- hard_vote ---------------------------------------------------------------------------------

constexpr int64_t kVoters = 512;  // pixels decided together: their state stays in the first cache

// `stride` pixels lie between one member's vote and the next member's. A member counts itself and
// those after it that agree: the first of a class then has the full count, later ones have no more.
// (Sums of positive floats do not grow if terms are left out, so that this holds for Vote = float.)
template <typename Vote>
INLINE void decide(const uint8_t* votes, int64_t members, int64_t stride, int64_t count,
                   int32_t num_classes, const Vote* weights, uint8_t* winner) {
  Vote best[kVoters] = {}, total[kVoters];
  for (int64_t x = 0; x < count; ++x) winner[x] = 255;
  for (int64_t i = 0; i < members; ++i) {
    const uint8_t* mine = votes + i * stride;
    for (int64_t x = 0; x < count; ++x) total[x] = weights[i];
    for (int64_t j = i + 1; j < members; ++j) {
      const uint8_t* theirs = votes + j * stride;
      for (int64_t x = 0; x < count; ++x) total[x] += theirs[x] == mine[x] ? weights[j] : Vote{0};
    }
    for (int64_t x = 0; x < count; ++x) {
      const bool wins = (total[x] > best[x] || (total[x] == best[x] && mine[x] < winner[x])) &&
                        mine[x] < num_classes;
      best[x] = wins ? total[x] : best[x];
      winner[x] = wins ? mine[x] : winner[x];
    }
  }
}

CLONED void decide_counts(const uint8_t* votes, int64_t members, int64_t stride, int64_t count,
                          int32_t num_classes, const uint8_t* weights, uint8_t* winner) {
  decide<uint8_t>(votes, members, stride, count, num_classes, weights, winner);
}

CLONED void decide_sums(const uint8_t* votes, int64_t members, int64_t stride, int64_t count,
                        int32_t num_classes, const float* weights, uint8_t* winner) {
  decide<float>(votes, members, stride, count, num_classes, weights, winner);
}

at::Tensor hard_vote(const at::Tensor& predictions, int64_t num_classes,
                     const std::optional<at::ArrayRef<double>>& weights) {
  check_classes(num_classes);
  TORCH_CHECK(predictions.scalar_type() == at::kByte, "predictions must be uint8, got ",
              predictions.scalar_type());
  TORCH_CHECK(predictions.dim() >= 1, "predictions must be [M, ...]");
  const int64_t members = predictions.size(0);
  TORCH_CHECK(members >= 1 && members <= 255, "there must be 1..255 members, got ", members);
  const std::vector<uint8_t> ones(members, 1);
  std::vector<float> sums;
  if (weights) {
    TORCH_CHECK(static_cast<int64_t>(weights->size()) == members, members, " members but ",
                weights->size(), " weights");
    for (const double weight : *weights) {
      TORCH_CHECK(weight >= 1e-30 && weight <= 1e30, "weights must lie in 1e-30..1e30, got ",
                  *weights);
      sums.push_back(static_cast<float>(weight));
    }
  }
  const at::Tensor votes = predictions.contiguous();
  at::Tensor result = at::empty(votes.sizes().slice(1), votes.options());
  const uint8_t* vote_data = votes.const_data_ptr<uint8_t>();
  uint8_t* result_data = result.mutable_data_ptr<uint8_t>();
  const int64_t pixels = result.numel();
  const int32_t classes = static_cast<int32_t>(num_classes);
  at::parallel_for(0, pixels, kGrain / members + 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kVoters) {
      const int64_t count = std::min(kVoters, end - at);
      if (weights) {
        decide_sums(vote_data + at, members, pixels, count, classes, sums.data(), result_data + at);
      } else {
        decide_counts(vote_data + at, members, pixels, count, classes, ones.data(), result_data + at);
      }
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("confusion_matrix", &confusion_matrix);
  library.impl("argmax_upsample", &argmax_upsample);
  library.impl("cutmix", &cutmix);
  library.impl("classmix", &classmix);
  library.impl("hard_vote", &hard_vote);
  library.impl("confidence_histogram", &confidence_histogram);
}
