// soft_vote on CPUs. What it computes is defined in sampling.py, bit for bit.
//
// What bounds it: output pixels that lie in one cell of every member's grid form a block. Where one
// class clearly wins its four corners (see Block), a block is filled; with the mean of probabilities
// as confidence, that class alone is evaluated. Elsewhere each class costs 4 vector operations a
// member for 8 pixels, and where the confidence is a softmax another 22, everywhere.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "checks.h"
#include "sample_cpu.h"

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Range {  // output rows or columns
  int64_t begin, end;
};

// Those for which all members read the same source positions with linear weights: a position before
// the first is moved there, and its weight with it.

std::vector<Range> unchanging(const std::vector<Axis>& axes, int64_t size) {
  std::vector<Range> ranges;
  for (int64_t i = 0; i < size; ++i) {
    const bool same = i > 0 && std::all_of(axes.begin(), axes.end(), [i](const Axis& axis) {
                        return axis.low[i] == axis.low[i - 1] &&
                               (axis.high_weight[i] == 0) == (axis.high_weight[i - 1] == 0);
                      });
    if (!same) ranges.push_back({i, i});
    ranges.back().end = i + 1;
  }
  return ranges;
}

struct SourceRow {
  int64_t id = -1;            // n * h + y
  std::vector<float> values;  // [w][C]
  float largest = 0;          // magnitude; NaN does not count
};

struct Member {  // of the vote, as one thread sees it
  SourceRow top, bottom;
  std::vector<float> row;  // [w][C], one output row between the two, weighted
};

CLONED float largest_of(const float* values, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::abs(values[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

CLONED void weigh_rows(const float* top, const float* bottom, float top_weight, float bottom_weight,
                       float weight, int64_t count, float* row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = weight * (top_weight * top[i] + bottom_weight * bottom[i]);
  }
}

void load_row(const at::Tensor& source, int64_t n, int64_t y, SourceRow& row) {
  if (row.id == n * source.size(2) + y) return;
  row.id = n * source.size(2) + y;
  row.values.resize(source.size(1) * source.size(3));
  copy_row(source, n, y, row.values.data());
  row.largest = largest_of(row.values.data(), static_cast<int64_t>(row.values.size()));
}

// What one output pixel or span reads of a member: two source columns, and their weights.
struct Columns {
  const float *left, *right, *left_weights, *right_weights;
};

// Finds the class that wins one pixel by more than `margin`; -1 if none does.
CLONED int32_t clear_winner(const Columns* columns, int64_t members, int64_t x, int32_t num_classes,
                            float margin, float* values) {
  for (int64_t m = 0; m < members; ++m) {
    const Columns& from = columns[m];
    const float a = from.left_weights[x], b = from.right_weights[x];
    const float *left = from.left, *right = from.right;
    if (m == 0) {
      for (int32_t c = 0; c < num_classes; ++c) values[c] = a * left[c] + b * right[c];
    } else {
      for (int32_t c = 0; c < num_classes; ++c) values[c] += a * left[c] + b * right[c];
    }
  }
  float best = kLowest, second = kLowest;
  int32_t winner = -1;
  for (int32_t c = 0; c < num_classes; ++c) {
    const bool better = values[c] > best;
    second = better ? best : std::max(second, values[c]);
    winner = better ? c : winner;
    best = better ? values[c] : best;
  }
  return best - second > margin ? winner : -1;
}

enum class Confidence { kNone, kMean, kSoftmax };

// The mean of one class, for 8 pixels.
INLINE Floats mean_of(const Columns* columns, int64_t members, int64_t x, int32_t c) {
  Floats total{};
  for (int64_t m = 0; m < members; ++m) {
    const Columns& from = columns[m];
    const auto a = load<Floats>(from.left_weights + x), b = load<Floats>(from.right_weights + x);
    const Floats value = a * from.left[c] + b * from.right[c];
    total = m == 0 ? value : total + value;
  }
  return total;
}

// Fill a span, and up to kLanes - 1 pixels past it. `values` is room for C vectors.
CLONED void fill_span(const Columns* columns, int64_t members, Range span, int32_t num_classes,
                      Confidence kind, Floats* values, uint8_t* out, float* confidence) {
  for (int64_t x = span.begin; x < span.end; x += kLanes) {
    Floats best = Floats{} + kLowest;
    Ints winner{};
    for (int32_t c = 0; c < num_classes; ++c) {
      const Floats value = values[c] = mean_of(columns, members, x, c);
      const Ints better = value > best;
      best = better ? value : best;
      winner = better ? Ints{} + c : winner;
    }
    const Bytes ids = __builtin_convertvector(winner, Bytes);
    std::memcpy(out + x, &ids, sizeof(ids));
    if (kind == Confidence::kNone) continue;
    Floats share = best;
    if (kind == Confidence::kSoftmax) {
      Floats total{};
      for (int32_t c = 0; c < num_classes; ++c) total += exp_of(values[c] - best);
      share = 1.0f / total;
    }
    share = best - best == 0.0f ? share : Floats{};
    std::memcpy(confidence + x, &share, sizeof(share));
  }
}

CLONED void fill_clear_span(const Columns* columns, int64_t members, Range span, int32_t winner,
                            Confidence kind, uint8_t* out, float* confidence) {
  const Bytes same = Bytes{} + static_cast<uint8_t>(winner);
  for (int64_t x = span.begin; x < span.end; x += kLanes) {
    std::memcpy(out + x, &same, sizeof(same));
    if (kind == Confidence::kNone) continue;
    const Floats share = mean_of(columns, members, x, winner);
    std::memcpy(confidence + x, &share, sizeof(share));
  }
}

struct Vote {  // what does not change from block to block
  at::TensorList members;
  const std::vector<float>& weights;
  std::vector<Axis> ys, xs;
  std::vector<Range> spans;
  int32_t num_classes;
  Confidence kind;
};

// Exactly computed, the lead of a class over another is linear in x and in y inside a block, so the
// least of it stands in a corner. What is computed differs by the roundings of 2^-24 times the
// magnitude of what is added up, one a member and 8 more; and as a weight is the rest of a position
// rounded twice, by 2^-24 times 16 positions (two roundings, two columns, two classes, a corner and a
// pixel) in either direction. Twice as much is left room for. NaN never wins, in the corners and
// between them; infinities give an infinite margin.
class Block {  // what one thread works on, and its memory
 public:
  explicit Block(const Vote& vote)
      : vote_(vote),
        members_(vote.members.size()),
        columns_(vote.spans.size() * vote.members.size()),
        clear_(vote.spans.size()),
        corner_(vote.num_classes),
        values_(new Floats[vote.num_classes]) {
    for (size_t m = 0; m < members_.size(); ++m) {
      members_[m].row.resize(vote.members[m].size(1) * vote.members[m].size(3));
    }
    for (size_t s = 0; s < vote.spans.size(); ++s) {
      for (size_t m = 0; m < members_.size(); ++m) {
        const Axis& xs = vote.xs[m];
        const int64_t x = vote.spans[s].begin;
        columns_[s * members_.size() + m] = {
            &members_[m].row[xs.low[x] * vote.num_classes],
            &members_[m].row[xs.high[x] * vote.num_classes],
            xs.low_weight.data(), xs.high_weight.data()};
      }
    }
  }

  void load(int64_t n, Range rows) {
    float magnitude = 0, longest = 0;
    for (size_t m = 0; m < members_.size(); ++m) {
      Member& member = members_[m];
      const at::Tensor& source = vote_.members[m];
      const Axis& ys = vote_.ys[m];
      if (member.bottom.id == n * source.size(2) + ys.low[rows.begin]) {
        std::swap(member.top, member.bottom);
      }
      load_row(source, n, ys.low[rows.begin], member.top);
      load_row(source, n, ys.high[rows.begin], member.bottom);
      magnitude += vote_.weights[m] * std::max(member.top.largest, member.bottom.largest);
      longest = std::max<float>(longest, source.size(2) + source.size(3));
    }
    const float roundings = 8.0f + static_cast<float>(members_.size()) + longest * 16;
    const float margin = magnitude * roundings * 0x1p-23f + std::numeric_limits<float>::min();
    const bool of_use = vote_.kind != Confidence::kSoftmax && margin < 1e30f;
    std::fill(clear_.begin(), clear_.end(), -1);
    for (int64_t y = rows.begin; of_use; y = rows.end - 1) {
      weigh(y);
      for (size_t s = 0; s < clear_.size(); ++s) {
        const Range span = vote_.spans[s];
        if (y != rows.begin && clear_[s] < 0) continue;
        const int32_t winner = clear_at(s, span.begin, margin);
        const bool both = winner >= 0 && (span.end - span.begin == 1 ||
                                          winner == clear_at(s, span.end - 1, margin));
        clear_[s] = both && (y == rows.begin || winner == clear_[s]) ? winner : -1;
      }
      if (y == rows.end - 1) break;
    }
  }

  void fill(int64_t y, uint8_t* out, float* confidence) {
    const bool all_clear = vote_.kind == Confidence::kNone &&
                           std::all_of(clear_.begin(), clear_.end(), [](int w) { return w >= 0; });
    if (!all_clear) weigh(y);
    const auto count = static_cast<int64_t>(members_.size());
    for (size_t s = 0; s < clear_.size(); ++s) {
      const Columns* columns = &columns_[s * members_.size()];
      if (clear_[s] >= 0) {
        fill_clear_span(columns, count, vote_.spans[s], clear_[s], vote_.kind, out, confidence);
      } else {
        fill_span(columns, count, vote_.spans[s], vote_.num_classes, vote_.kind, values_.get(), out,
                  confidence);
      }
    }
  }

 private:
  void weigh(int64_t y) {
    for (size_t m = 0; m < members_.size(); ++m) {
      Member& member = members_[m];
      weigh_rows(member.top.values.data(), member.bottom.values.data(), vote_.ys[m].low_weight[y],
                 vote_.ys[m].high_weight[y], vote_.weights[m],
                 static_cast<int64_t>(member.row.size()), member.row.data());
    }
  }

  int32_t clear_at(size_t s, int64_t x, float margin) {
    return clear_winner(&columns_[s * members_.size()], static_cast<int64_t>(members_.size()), x,
                        vote_.num_classes, margin, corner_.data());
  }

  const Vote& vote_;
  std::vector<Member> members_;
  std::vector<Columns> columns_;  // [span][member]
  std::vector<int32_t> clear_;    // of each span: the class that wins all of its block, or -1
  std::vector<float> corner_;     // [C]
  std::unique_ptr<Floats[]> values_;
};

std::tuple<at::Tensor, at::Tensor> soft_vote(at::TensorList members, at::IntArrayRef size,
                                             at::ArrayRef<double> weights, bool align_corners,
                                             bool probabilities, bool with_confidence) {
  check_soft_vote(members, size, weights);
  const int64_t samples = members[0].size(0), height = size[0], width = size[1];
  at::Tensor pred = at::empty({samples, height, width}, at::kByte);
  at::Tensor confidence =
      at::empty(with_confidence ? pred.sizes() : at::IntArrayRef({0}), at::kFloat);
  if (pred.numel() == 0) return {pred, confidence};

  const std::vector<float> given(weights.begin(), weights.end());
  Vote vote{members, given, {}, {}, {}, static_cast<int32_t>(members[0].size(1)), Confidence::kNone};
  if (with_confidence) vote.kind = probabilities ? Confidence::kMean : Confidence::kSoftmax;
  for (const at::Tensor& member : members) {
    vote.ys.emplace_back(member.size(2), height, align_corners);
    vote.xs.emplace_back(member.size(3), width, align_corners);
  }
  vote.spans = unchanging(vote.xs, width);
  const std::vector<Range> blocks = unchanging(vote.ys, height);
  const auto in_sample = static_cast<int64_t>(blocks.size());
  uint8_t* preds = pred.mutable_data_ptr<uint8_t>();
  float* confidences = with_confidence ? confidence.mutable_data_ptr<float>() : nullptr;
  const int64_t grain = kGrain * in_sample / (height * width) + 1;
  at::parallel_for(0, samples * in_sample, grain, [&](int64_t begin, int64_t end) {
    Block block(vote);
    std::vector<float> confidence_row(width + kLanes);
    std::vector<uint8_t> pred_row(width + kLanes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / in_sample;
      const Range rows = blocks[i % in_sample];
      block.load(n, rows);
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        const int64_t row = n * height + y;
        block.fill(y, pred_row.data(), confidence_row.data());
        std::memcpy(preds + row * width, pred_row.data(), width);
        if (!with_confidence) continue;
        std::memcpy(confidences + row * width, confidence_row.data(), width * sizeof(float));
      }
    }
  });
  return {pred, confidence};
}

}  // namespace

TORCH_LIBRARY_IMPL(segshift, CPU, library) {
  library.impl("soft_vote", &soft_vote);
}
