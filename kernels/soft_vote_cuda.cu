// soft_vote with CUDA. What it computes is defined in sampling.py, bit for bit.
//
// What bounds it: 10 float operations for each class, member and pixel, twice with a softmax as
// confidence (and 23 more a class); one byte is written a pixel, with confidence four more. The
// sources are small and are read from the caches. A thread finds a pixel, kClasses classes at a time,
// as every member's position is found anew for them.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "launch.h"
#include "sample_cuda.h"

namespace {

constexpr int kClasses = 8;

struct Member {
  const void* data;
  at::ScalarType type;
  float weight, y_scale, x_scale;
  int64_t height, width;
  int64_t strides[4];  // n, c, h, w
};

struct Vote {  // passed with the launch: nothing to copy to the device beforehand
  Member members[kMostSoftMembers];
  int count, num_classes;
  int64_t height, width;
  bool align_corners;
};

__device__ float read(const Member& member, int64_t at) {
  switch (member.type) {
    case at::kFloat: return static_cast<const float*>(member.data)[at];
    case at::kHalf: return static_cast<const at::Half*>(member.data)[at];
    default: return static_cast<const at::BFloat16*>(member.data)[at];
  }
}

// Calls use(c, mean) for every class of a pixel in order.
template <typename Use>
__device__ void for_each_class(const Vote& vote, int64_t n, int64_t y, int64_t x, const Use& use) {
  for (int begin = 0; begin < vote.num_classes; begin += kClasses) {
    float mean[kClasses];
    for (int m = 0; m < vote.count; ++m) {
      const Member& member = vote.members[m];
      const Position down = find_position(y, member.y_scale, member.height, vote.align_corners);
      const Position across = find_position(x, member.x_scale, member.width, vote.align_corners);
      const int64_t top = n * member.strides[0] + down.low * member.strides[2];
      const int64_t bottom = n * member.strides[0] + down.high * member.strides[2];
      const int64_t left = across.low * member.strides[3], right = across.high * member.strides[3];
#pragma unroll
      for (int i = 0; i < kClasses; ++i) {
        if (begin + i >= vote.num_classes) break;
        const int64_t plane = (begin + i) * member.strides[1];
        const float l = member.weight * (down.low_weight * read(member, plane + top + left) +
                                         down.high_weight * read(member, plane + bottom + left));
        const float r = member.weight * (down.low_weight * read(member, plane + top + right) +
                                         down.high_weight * read(member, plane + bottom + right));
        const float value = across.low_weight * l + across.high_weight * r;
        mean[i] = m == 0 ? value : mean[i] + value;
      }
    }
#pragma unroll
    for (int i = 0; i < kClasses; ++i) {
      if (begin + i < vote.num_classes) use(begin + i, mean[i]);
    }
  }
}

__global__ void soft_vote_kernel(const Vote vote, int64_t pixels, bool softmax, uint8_t* pred,
                                 float* confidence) {
  for (int64_t at = blockIdx.x * int64_t{kThreads} + threadIdx.x; at < pixels;
       at += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t x = at % vote.width, y = at / vote.width % vote.height;
    const int64_t n = at / vote.width / vote.height;
    float best = -INFINITY;
    int winner = 0;
    for_each_class(vote, n, y, x, [&](int c, float mean) {
      winner = mean > best ? c : winner;
      best = mean > best ? mean : best;
    });
    pred[at] = static_cast<uint8_t>(winner);
    if (!confidence) continue;
    float share = best;
    if (softmax) {
      float total = 0;
      for_each_class(vote, n, y, x, [&](int, float mean) { total += exp_of(mean - best); });
      share = 1.0f / total;
    }
    confidence[at] = isfinite(best) ? share : 0.0f;
  }
}

std::tuple<at::Tensor, at::Tensor> soft_vote(at::TensorList members, at::IntArrayRef size,
                                             at::ArrayRef<double> weights, bool align_corners,
                                             bool probabilities, bool with_confidence) {
  check_soft_vote(members, size, weights);
  const at::Tensor& first = members[0];
  const c10::cuda::CUDAGuard guard(first.device());
  at::Tensor pred = at::empty({first.size(0), size[0], size[1]}, first.options().dtype(at::kByte));
  at::Tensor confidence = at::empty(with_confidence ? pred.sizes() : at::IntArrayRef({0}),
                                    first.options().dtype(at::kFloat));
  if (pred.numel() == 0) return {pred, confidence};
  Vote vote{};
  vote.count = static_cast<int>(members.size());
  vote.num_classes = static_cast<int>(first.size(1));
  vote.height = size[0], vote.width = size[1], vote.align_corners = align_corners;
  for (size_t m = 0; m < members.size(); ++m) {
    const at::Tensor& member = members[m];
    vote.members[m] = {member.const_data_ptr(), member.scalar_type(), static_cast<float>(weights[m]),
                       scale_of(member.size(2), size[0], align_corners),
                       scale_of(member.size(3), size[1], align_corners),
                       member.size(2), member.size(3),
                       {member.stride(0), member.stride(1), member.stride(2), member.stride(3)}};
  }
  soft_vote_kernel<<<blocks_for(pred.numel(), 64), kThreads, 0,
                     c10::cuda::getCurrentCUDAStream()>>>(
      vote, pred.numel(), !probabilities, pred.mutable_data_ptr<uint8_t>(),
      with_confidence ? confidence.mutable_data_ptr<float>() : nullptr);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {pred, confidence};
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CUDA, library) {
  library.impl("soft_vote", &soft_vote);
}
