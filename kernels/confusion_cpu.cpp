// Counting and voting on CPUs. What they compute is defined in reference.py, bit for bit.
//
// What bounds each one (P pixels, M members; cycles of a 2019 Intel core with AVX-512):
//   confusion_matrix      reads P predictions and labels. Finding the cells takes 0.3 cycles a pixel
//                         of uint8, finding where they change 0.35, and in a run of 64 with changes,
//                         a mispredicted branch and 5 cycles a change: another 0.3 in network-like
//                         maps. Noise is counted pixel by pixel: two loads and a store address on
//                         two ports, 1.5 cycles. Memory bounds int64 labels: 16 bytes a pixel.
//   confidence_histogram  reads 5 * P bytes, 0.5 cycles a pixel to find the cell, one increment:
//                         2 cycles a pixel where confidences are noise, of which 1.5 are the floor.
//   hard_vote             reads M * P bytes, writes P; M * (M - 1) / 2 byte comparisons a pixel.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <type_traits>
#include <vector>

#ifdef __SSE2__  // on every x86-64
#include <emmintrin.h>
#endif

#include "checks.h"
#include "cpu.h"

namespace {

// ---- confusion_matrix, confidence_histogram ----------------------------------------------------

constexpr int64_t kRun = 64;     // neighbours that are counted together
constexpr int64_t kBlock = 256;  // pixels whose cells are found before they are counted
constexpr int64_t kCopies = 4;   // counters per cell, so that increments seldom await each other
constexpr int64_t kParts = 8;    // of a run that is counted one by one
constexpr int kScattered = 16;   // changes of the cell for which that is better
constexpr int64_t kMostCounted = int64_t{1} << 31;  // before 32-bit counters are added up

struct Counters {
  uint32_t* copies[kCopies];

  INLINE uint32_t& of(int64_t cell, int64_t copy = 0) const { return copies[copy][cell]; }
};

// Counts into `cells` cells, of which the first `kept` are returned.
// count(begin, end, counters) adds a range of pixels.
template <typename Count>
at::Tensor histogram(int64_t pixels, int64_t cells, int64_t kept, const Count& count) {
  at::Tensor result = at::empty({kept}, at::kLong);
  int64_t* total = result.mutable_data_ptr<int64_t>();
  std::fill_n(total, kept, 0);
  std::mutex mutex;
  at::parallel_for(0, pixels, kGrain, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kMostCounted) {
      std::vector<uint32_t> data(cells * kCopies);
      Counters counters;
      for (int64_t copy = 0; copy < kCopies; ++copy) {
        counters.copies[copy] = data.data() + copy * cells;
      }
      count(begin, std::min(begin + kMostCounted, end), counters);
      const std::lock_guard<std::mutex> guard(mutex);
      for (int64_t copy = 0; copy < kCopies; ++copy) {
        for (int64_t cell = 0; cell < kept; ++cell) total[cell] += counters.of(cell, copy);
      }
    }
  });
  return result;
}

// A counter that was just stored cannot be read at once, and neighbours tend to share a cell: a run
// is therefore walked in kParts places by turns.
template <typename Index>
INLINE void count_one_by_one(const Index* index, Counters counters) {
  for (int64_t i = 0; i < kRun / kParts; ++i) {
    for (int64_t part = 0; part < kParts; ++part) {
      ++counters.of(index[part * (kRun / kParts) + i], part % kCopies);
    }
  }
}

// Bit i says whether pixel i of a run is the last one of its cell; reads one pixel past the run.
INLINE uint64_t where_cells_end(const uint16_t* index) {
  uint64_t same = 0;
#ifdef __SSE2__
  for (int64_t i = 0; i < kRun; i += 16) {
    const auto eight_equal = [&](int64_t at) __attribute__((always_inline)) {
      const __m128i* here = reinterpret_cast<const __m128i*>(index + at);
      const __m128i* next = reinterpret_cast<const __m128i*>(index + at + 1);
      return _mm_cmpeq_epi16(_mm_load_si128(here), _mm_loadu_si128(next));
    };
    const __m128i equal = _mm_packs_epi16(eight_equal(i), eight_equal(i + 8));
    same |= static_cast<uint64_t>(_mm_movemask_epi8(equal)) << i;
  }
#else
  for (int64_t i = 0; i < kRun; ++i) same |= static_cast<uint64_t>(index[i] == index[i + 1]) << i;
#endif
  return ~same | uint64_t{1} << (kRun - 1);
}

// Counts a run. Label maps consist of regions: neighbours of one cell are counted at once.
INLINE void count_run(const uint16_t* index, Counters counters) {
  uint64_t ends = where_cells_end(index);
  if (__builtin_popcountll(ends) > kScattered) return count_one_by_one(index, counters);
  for (int begin = 0; ends != 0; ends &= ends - 1) {
    const int last = __builtin_ctzll(ends);
    counters.of(index[last], last % kCopies) += last + 1 - begin;
    begin = last + 1;
  }
}

// The same for cells that need more bits, with less care.
INLINE void count_run(const uint32_t* index, Counters counters) {
  uint32_t differing = 0;
  for (int64_t i = 1; i < kRun; ++i) differing |= index[i] ^ index[0];
  if (differing != 0) return count_one_by_one(index, counters);
  counters.of(index[0]) += kRun;
}

template <typename Index>
INLINE void count_block(const Index* index, int64_t count, Counters counters) {
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun) count_run(index + i, counters);
  for (; i < count; ++i) ++counters.of(index[i]);
}

template <typename Index, typename T>
INLINE Index class_or_spare(T id, Index num_classes) {
  using Unsigned = std::make_unsigned_t<T>;  // in which a negative id is a large one
  using Compared = std::conditional_t<(sizeof(T) > sizeof(Index)), Unsigned, Index>;
  return static_cast<Index>(
      std::min<Compared>(static_cast<Unsigned>(id), static_cast<Compared>(num_classes)));
}

// Rows of the matrix: the classes, the spare one, and one more for ignored pixels.
template <typename Index, typename Pred, typename Label>
INLINE void count_typed_pairs(const Pred* pred, const Label* label, int64_t begin, int64_t end,
                              Index num_classes, int64_t ignore_index, Counters counters) {
  const Label ignored = static_cast<Label>(ignore_index);
  const bool can_be_ignored = static_cast<int64_t>(ignored) == ignore_index;
  const Index side = num_classes + 1;
  alignas(64) Index index[kBlock + 1] = {};
  for (; begin < end; begin += kBlock) {
    const Pred* p = pred + begin;
    const Label* l = label + begin;
    const int64_t count = std::min(kBlock, end - begin);
    for (int64_t i = 0; i < count; ++i) {
      const Index row = class_or_spare(l[i], num_classes);
      index[i] = side * (can_be_ignored && l[i] == ignored ? side : row);
      index[i] += class_or_spare(p[i], num_classes);
    }
    count_block(index, count, counters);
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

template <typename Index>
INLINE void count_pairs(Ids preds, Ids labels, int64_t begin, int64_t end, Index num_classes,
                        int64_t ignore_index, Counters counters) {
  with_type(preds, [&](const auto* pred) __attribute__((always_inline)) {
    with_type(labels, [&](const auto* label) __attribute__((always_inline)) {
      count_typed_pairs(pred, label, begin, end, num_classes, ignore_index, counters);
    });
  });
}

constexpr int64_t kMostShort = 254;  // classes whose cells can be told apart in 16 bits

CLONED void count_few(Ids preds, Ids labels, int64_t begin, int64_t end, int64_t num_classes,
                      int64_t ignore_index, Counters counters) {
  count_pairs<uint16_t>(preds, labels, begin, end, num_classes, ignore_index, counters);
}

CLONED void count_many(Ids preds, Ids labels, int64_t begin, int64_t end, int64_t num_classes,
                       int64_t ignore_index, Counters counters) {
  count_pairs<uint32_t>(preds, labels, begin, end, num_classes, ignore_index, counters);
}

at::Tensor confusion_matrix(const at::Tensor& pred, const at::Tensor& label, int64_t num_classes,
                            int64_t ignore_index) {
  check_confusion_matrix(pred, label, num_classes);
  const at::Tensor p = pred.contiguous(), l = label.contiguous();
  const Ids preds{p.const_data_ptr(), p.scalar_type()}, labels{l.const_data_ptr(), l.scalar_type()};
  const int64_t side = num_classes + 1;
  const auto count = [&](int64_t begin, int64_t end, Counters counters) {
    const auto count_range = num_classes <= kMostShort ? count_few : count_many;
    count_range(preds, labels, begin, end, num_classes, ignore_index, counters);
  };
  return histogram(p.numel(), (side + 1) * side, side * side, count).view({side, side});
}

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
