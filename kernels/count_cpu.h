// Counting into cells on CPUs: what confusion_matrix and confidence_histogram share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <mutex>
#include <vector>

#ifdef __SSE2__  // on every x86-64
#include <emmintrin.h>
#endif

#include "cpu.h"

namespace {

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

}  // namespace
