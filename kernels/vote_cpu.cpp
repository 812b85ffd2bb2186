// hard_vote on CPUs. What it computes is defined in reference.py, bit for bit.
//
// What bounds it (P pixels, M members): it reads M * P bytes, writes P, and makes M * (M - 1) / 2 byte
// comparisons a pixel.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu.h"

namespace {

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
  library.impl("hard_vote", &hard_vote);
}
