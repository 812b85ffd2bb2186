// Counting and voting on CPUs. What they compute is defined in reference.py, bit for bit.
//
// What bounds each one (P pixels, M members):
//   confusion_matrix      reads P predictions and labels; 64 equal neighbours are counted at once,
//                         any other pixel costs one read-modify-write, about 1.5 cycles.
//   confidence_histogram  reads 5 * P bytes, then counts as confusion_matrix does.
//   hard_vote             reads M * P bytes, writes P; M * (M - 1) / 2 byte comparisons a pixel.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cpu.h"

namespace {

// ---- confusion_matrix, confidence_histogram ----------------------------------------------------

constexpr int64_t kRun = 64;    // neighbours that are counted at once if they are equal
constexpr int64_t kCopies = 4;  // counters per cell, so that increments seldom await each other
constexpr int64_t kParts = 8;

// Counts into `cells` cells, of which the first `kept` are returned.
// count(begin, end, counters) adds a range of pixels to kCopies counters per cell.
template <typename Count>
at::Tensor histogram(int64_t pixels, int64_t cells, int64_t kept, const Count& count) {
  at::Tensor result = at::zeros({kept}, at::kLong);
  int64_t* total = result.mutable_data_ptr<int64_t>();
  std::mutex mutex;
  at::parallel_for(0, pixels, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> counters(cells * kCopies);
    count(begin, end, counters.data());
    const std::lock_guard<std::mutex> guard(mutex);
    for (int64_t i = 0; i < kept * kCopies; ++i) total[i / kCopies] += counters[i];
  });
  return result;
}

template <typename T>
INLINE bool all_equal(const T* values) {
  T differing = 0;
  for (int64_t i = 0; i < kRun; ++i) differing |= values[i] ^ values[0];
  return differing == 0;
}

// Neighbours tend to share a cell, and a counter that was just stored cannot be read at once: a run
// is therefore walked in kParts places by turns.
INLINE void count_indices(const int32_t* index, int64_t count, int64_t* counters) {
  if (count < kRun) {
    for (int64_t i = 0; i < count; ++i) ++counters[index[i] * kCopies];
    return;
  }
  for (int64_t i = 0; i < kRun / kParts; ++i) {
    for (int64_t part = 0; part < kParts; ++part) {
      ++counters[index[part * (kRun / kParts) + i] * kCopies + part % kCopies];
    }
  }
}

template <typename T>
INLINE int32_t class_or_spare(T id, int32_t num_classes) {
  using Unsigned = std::make_unsigned_t<T>;  // in which a negative id is a large one
  using Compared = std::common_type_t<Unsigned, uint32_t>;
  const bool valid = static_cast<Unsigned>(id) < static_cast<Compared>(num_classes);
  return valid ? static_cast<int32_t>(id) : num_classes;
}

// Rows of the matrix: the classes, the spare one, and one more for ignored pixels.
template <typename Pred, typename Label>
INLINE void count_typed_pairs(const Pred* pred, const Label* label, int64_t begin, int64_t end,
                              int32_t num_classes, int64_t ignore_index, int64_t* counters) {
  const Label ignored = static_cast<Label>(ignore_index);
  const bool can_be_ignored = static_cast<int64_t>(ignored) == ignore_index;
  const int32_t side = num_classes + 1;
  int32_t index[kRun];
  for (; begin < end; begin += kRun) {
    const Pred* p = pred + begin;
    const Label* l = label + begin;
    const bool same = begin + kRun <= end && all_equal(l) && all_equal(p);
    const int64_t distinct = same ? 1 : std::min(kRun, end - begin);
    for (int64_t i = 0; i < distinct; ++i) {
      const int32_t row = class_or_spare(l[i], num_classes);
      index[i] = side * (can_be_ignored && l[i] == ignored ? side : row);
      index[i] += class_or_spare(p[i], num_classes);
    }
    if (same) {
      counters[index[0] * kCopies] += kRun;
    } else {
      count_indices(index, distinct, counters);
    }
  }
}

struct Ids {
  const void* data;
  at::ScalarType type;
};

template <typename Use>
INLINE void with_type(Ids ids, const Use& use) {
  switch (ids.type) {
    case at::kByte: return use(static_cast<const uint8_t*>(ids.data));
    case at::kInt: return use(static_cast<const int32_t*>(ids.data));
    default: return use(static_cast<const int64_t*>(ids.data));
  }
}

CLONED void count_pairs(Ids preds, Ids labels, int64_t begin, int64_t end, int32_t num_classes,
                        int64_t ignore_index, int64_t* counters) {
  with_type(preds, [&](const auto* pred) __attribute__((always_inline)) {
    with_type(labels, [&](const auto* label) __attribute__((always_inline)) {
      count_typed_pairs(pred, label, begin, end, num_classes, ignore_index, counters);
    });
  });
}

at::Tensor confusion_matrix(const at::Tensor& pred, const at::Tensor& label, int64_t num_classes,
                            int64_t ignore_index) {
  check_confusion_matrix(pred, label, num_classes);
  const at::Tensor p = pred.contiguous(), l = label.contiguous();
  const Ids preds{p.const_data_ptr(), p.scalar_type()}, labels{l.const_data_ptr(), l.scalar_type()};
  const int64_t side = num_classes + 1;
  const auto count = [&](int64_t begin, int64_t end, int64_t* counters) {
    count_pairs(preds, labels, begin, end, static_cast<int32_t>(num_classes), ignore_index, counters);
  };
  return histogram(p.numel(), (side + 1) * side, side * side, count).view({side, side});
}

CLONED void count_confidences(const float* confidence, const uint8_t* pred, int64_t begin,
                              int64_t end, int32_t num_classes, int32_t bins, int64_t* counters) {
  const float scale = static_cast<float>(bins), last = static_cast<float>(bins - 1);
  int32_t index[kRun];
  for (; begin < end; begin += kRun) {
    const int64_t count = std::min(kRun, end - begin);
    for (int64_t i = 0; i < count; ++i) {
      const float position = confidence[begin + i] * scale;
      float column = position > 0 ? position : 0;  // NaN too, which is not counted
      column = column < last ? column : last;
      const bool counted = (pred[begin + i] < num_classes) & (position == position);
      index[i] = counted ? pred[begin + i] * bins + static_cast<int32_t>(column) : num_classes * bins;
    }
    if (count == kRun && all_equal(index)) {
      counters[index[0] * kCopies] += kRun;
    } else {
      count_indices(index, count, counters);
    }
  }
}

at::Tensor confidence_histogram(const at::Tensor& confidence, const at::Tensor& pred,
                                int64_t num_classes, int64_t bins) {
  check_confidence_histogram(confidence, pred, num_classes, bins);
  const at::Tensor f = confidence.contiguous(), p = pred.contiguous();
  const auto count = [&](int64_t begin, int64_t end, int64_t* counters) {
    count_confidences(f.const_data_ptr<float>(), p.const_data_ptr<uint8_t>(), begin, end,
                      static_cast<int32_t>(num_classes), static_cast<int32_t>(bins), counters);
  };
  const int64_t cells = num_classes * bins;
  return histogram(p.numel(), cells + 1, cells, count).view({num_classes, bins});
}

// ---- hard_vote ---------------------------------------------------------------------------------

constexpr int64_t kVoters = 512;  // pixels decided together: their state stays in the first cache

INLINE uint16_t ordered(uint8_t total) { return total; }
INLINE uint64_t ordered(float total) {  // the bits of floats that are not negative have their order
  uint32_t bits;
  std::memcpy(&bits, &total, sizeof(bits));
  return bits;
}

// One member's votes are `stride` bytes from the next one's. A member adds up its own weight and
// those of later members that agree: the first one of a class finds the whole sum, the others no
// more than that (leaving out positive terms makes no float32 sum larger). The largest key wins:
// the sum, then the lower class. A key of 0 is an abstention and stands for 255.
template <typename Key, typename Weight>
INLINE void decide(const uint8_t* votes, int64_t members, int64_t stride, int64_t count,
                   int32_t num_classes, const Weight* weights, uint8_t* winner) {
  Key best[kVoters] = {};
  Weight total[kVoters];
  for (int64_t i = 0; i < members; ++i) {
    const uint8_t* mine = votes + i * stride;
    std::fill_n(total, count, weights[i]);
    for (int64_t j = i + 1; j < members; ++j) {
      const uint8_t* theirs = votes + j * stride;
      const Weight weight = weights[j];
      for (int64_t x = 0; x < count; ++x) total[x] += theirs[x] == mine[x] ? weight : Weight{0};
    }
    for (int64_t x = 0; x < count; ++x) {
      const Key key = ordered(total[x]) << 8 | (255 - mine[x]);
      best[x] = std::max(best[x], mine[x] < num_classes ? key : Key{0});
    }
  }
  for (int64_t x = 0; x < count; ++x) winner[x] = static_cast<uint8_t>(255 - (best[x] & 255));
}

CLONED void decide_counts(const uint8_t* votes, int64_t members, int64_t stride, int64_t count,
                          int32_t num_classes, const uint8_t* weights, uint8_t* winner) {
  decide<uint16_t>(votes, members, stride, count, num_classes, weights, winner);
}

CLONED void decide_sums(const uint8_t* votes, int64_t members, int64_t stride, int64_t count,
                        int32_t num_classes, const float* weights, uint8_t* winner) {
  decide<uint64_t>(votes, members, stride, count, num_classes, weights, winner);
}

at::Tensor hard_vote(const at::Tensor& predictions, int64_t num_classes,
                     const std::optional<at::ArrayRef<double>>& weights) {
  check_hard_vote(predictions, num_classes, weights);
  const at::Tensor votes = predictions.contiguous();
  at::Tensor result = at::empty(votes.sizes().slice(1), at::kByte);
  const int64_t members = votes.size(0), pixels = result.numel();
  const int32_t classes = static_cast<int32_t>(num_classes);
  const std::vector<uint8_t> ones(members, 1);
  const std::vector<float> sums = weights ? std::vector<float>(weights->begin(), weights->end())
                                          : std::vector<float>();
  at::parallel_for(0, pixels, kGrain / members + 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kVoters) {
      const int64_t count = std::min(kVoters, end - at);
      const uint8_t* first = votes.const_data_ptr<uint8_t>() + at;
      uint8_t* winner = result.mutable_data_ptr<uint8_t>() + at;
      if (weights) {
        decide_sums(first, members, pixels, count, classes, sums.data(), winner);
      } else {
        decide_counts(first, members, pixels, count, classes, ones.data(), winner);
      }
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("confusion_matrix", &confusion_matrix);
  library.impl("confidence_histogram", &confidence_histogram);
  library.impl("hard_vote", &hard_vote);
}
