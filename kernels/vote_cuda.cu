// hard_vote with CUDA. What it computes is defined in reference.py, bit for bit.
//
// What bounds it (M members): without weights, which is the common case, instructions and memory
// alike: M + 1 bytes a pixel, and M * (M - 1) / 2 comparisons of four pixels in a word. With weights,
// instructions: a comparison and an addition for each pair and pixel. `python -m tools.benchmark
// sass` counts them. The sums need no care about fused multiply-adds: they multiply nothing.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "launch.h"

namespace {

constexpr int kPixels = 16;       // that a thread decides together
constexpr int kMostKept = 8;      // members whose votes stay in registers
using Words = Pack<unsigned, 4>;  // of 16 pixels

// As in vote_cpu.cpp: the first member of a class finds all its votes, and the largest key wins: the
// votes, then the lower class. A key of 0 is an abstention and stands for 255.

struct Bound {        // of the ids that are classes
  unsigned lowest;    // the first that is none, in each byte
  unsigned everyone;  // all bits if 256 are classes
};

__device__ unsigned classes_only(unsigned ids, Bound bound) {  // 255 where an id is a class
  const unsigned at_least = (ids | 0x80808080) - (bound.lowest & 0x7f7f7f7f);  // by seven bits
  const unsigned below = (~ids & bound.lowest) | (~(ids ^ bound.lowest) & ~at_least);
  return ((below | bound.everyone) >> 7 & 0x01010101) * 255;
}

// kept = 0: any number of members, whose votes are read again for each pair.
template <int kept>
__global__ void count_votes_kernel(const Words* __restrict__ votes, int given_members,
                                   int64_t packs, Bound bound, Words* __restrict__ winner) {
  const int members = kept ? kept : given_members;
  for (int64_t pack = blockIdx.x * int64_t{kThreads} + threadIdx.x; pack < packs;
       pack += static_cast<int64_t>(gridDim.x) * kThreads) {
    Words own[kept ? kept : 1];
#pragma unroll
    for (int i = 0; i < kept; ++i) own[i] = votes[i * packs + pack];
    unsigned best[8] = {};  // two keys each
#pragma unroll(kept ? kept : 1)
    for (int i = 0; i < members; ++i) {
      const Words mine = kept ? own[kept ? i : 0] : votes[i * packs + pack];
      Words count;
#pragma unroll
      for (int w = 0; w < 4; ++w) count.values[w] = 0x01010101;
#pragma unroll(kept ? kept : 1)
      for (int j = i + 1; j < members; ++j) {
        const Words theirs = kept ? own[kept ? j : 0] : votes[j * packs + pack];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          count.values[w] += equal_bytes(mine.values[w], theirs.values[w]) >> 7;
        }
      }
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const unsigned valid = classes_only(mine.values[w], bound);
        const unsigned ids = ~mine.values[w] & valid, counts = count.values[w] & valid;
        best[2 * w] = __vmaxu2(best[2 * w], __byte_perm(ids, counts, 0x5140));
        best[2 * w + 1] = __vmaxu2(best[2 * w + 1], __byte_perm(ids, counts, 0x7362));
      }
    }
    Words ids;
#pragma unroll
    for (int w = 0; w < 4; ++w) ids.values[w] = ~__byte_perm(best[2 * w], best[2 * w + 1], 0x6420);
    winner[pack] = ids;
  }
}

struct Weights {
  float of[255];  // passed with the launch: nothing to copy to the device beforehand
};

__global__ void sum_votes_kernel(const Words* __restrict__ votes, int members, int64_t packs,
                                 unsigned num_classes, const Weights weights,
                                 Words* __restrict__ winner) {
  using Ids = Pack<uint8_t, kPixels>;
  for (int64_t pack = blockIdx.x * int64_t{kThreads} + threadIdx.x; pack < packs;
       pack += static_cast<int64_t>(gridDim.x) * kThreads) {
    unsigned long long best[kPixels] = {};
    for (int i = 0; i < members; ++i) {
      const Ids mine = reinterpret_cast<const Ids*>(votes)[i * packs + pack];
      float total[kPixels];
#pragma unroll
      for (int x = 0; x < kPixels; ++x) total[x] = weights.of[i];
      for (int j = i + 1; j < members; ++j) {
        const Ids theirs = reinterpret_cast<const Ids*>(votes)[j * packs + pack];
        const float weight = weights.of[j];
#pragma unroll
        for (int x = 0; x < kPixels; ++x) {
          const float more = total[x] + weight;
          total[x] = theirs.values[x] == mine.values[x] ? more : total[x];
        }
      }
#pragma unroll
      for (int x = 0; x < kPixels; ++x) {
        const unsigned long long sum = __float_as_uint(total[x]);
        const unsigned long long key = sum << 8 | (255 - mine.values[x]);
        best[x] = max(best[x], mine.values[x] < num_classes ? key : 0);
      }
    }
    Ids ids;
#pragma unroll
    for (int x = 0; x < kPixels; ++x) ids.values[x] = static_cast<uint8_t>(~best[x] & 255);
    reinterpret_cast<Ids*>(winner)[pack] = ids;
  }
}

// Calls use(kept) with the constant of a number of members.
template <typename Use, int kept = kMostKept>
void with_members(int64_t members, const Use& use) {
  if constexpr (kept == 1) {
    use(std::integral_constant<int, 0>{});
  } else if (members == kept) {
    use(std::integral_constant<int, kept>{});
  } else {
    with_members<Use, kept - 1>(members, use);
  }
}

at::Tensor hard_vote(const at::Tensor& predictions, int64_t num_classes,
                     const std::optional<at::ArrayRef<double>>& weights) {
  check_hard_vote(predictions, num_classes, weights);
  const c10::cuda::CUDAGuard guard(predictions.device());
  const int64_t members = predictions.size(0), pixels = predictions.numel() / members;
  const int64_t packs = (pixels + kPixels - 1) / kPixels;
  at::Tensor votes = packable(predictions);
  if (pixels % kPixels != 0) {  // each member's votes must begin at a whole pack
    votes = at::empty({members, packs * kPixels}, predictions.options());
    votes.narrow(1, 0, pixels).copy_(predictions.reshape({members, pixels}));
  }
  const at::Tensor result = at::empty({packs * kPixels}, predictions.options());
  if (pixels > 0) {
    const auto* from = static_cast<const Words*>(votes.const_data_ptr());
    auto* to = static_cast<Words*>(result.mutable_data_ptr());
    const int64_t blocks = blocks_for(packs);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    if (weights) {
      Weights given;
      std::copy(weights->begin(), weights->end(), given.of);
      sum_votes_kernel<<<blocks, kThreads, 0, stream>>>(
          from, static_cast<int>(members), packs, static_cast<unsigned>(num_classes), given, to);
    } else {
      const Bound bound{static_cast<unsigned>(num_classes & 255) * 0x01010101,
                        num_classes > 255 ? 0xffffffff : 0};
      with_members(members, [&](auto kept) {
        count_votes_kernel<decltype(kept)::value><<<blocks, kThreads, 0, stream>>>(
            from, static_cast<int>(members), packs, bound, to);
      });
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result.narrow(0, 0, pixels).view(predictions.sizes().slice(1));
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("hard_vote", &hard_vote);
}
