// What the C++ and the CUDA kernels ask of their arguments: the checks of reference.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace {

constexpr size_t kMostEntries = 16;  // that one call can mix
constexpr size_t kMostSoftMembers = 32;  // of one soft_vote: CUDA passes them with the launch
constexpr int64_t kMostRadius = 32767;  // of boundary_map; what lies between rows is aged in 16 bits

inline void check_classes(int64_t num_classes) {
  TORCH_CHECK(num_classes >= 1 && num_classes <= 256, "num_classes must be 1..256, got ",
              num_classes);
}

inline void check_ids(const at::Tensor& ids, const char* name) {
  const at::ScalarType type = ids.scalar_type();
  TORCH_CHECK(type == at::kByte || type == at::kInt || type == at::kLong, name,
              " must be uint8, int32 or int64, got ", type);
}

inline void check_device(const at::Tensor& tensor, const at::Tensor& other) {
  TORCH_CHECK(tensor.device() == other.device(), "tensors are on ", tensor.device(), " and ",
              other.device());
}

inline void check_confusion_matrix(const at::Tensor& pred, const at::Tensor& label,
                                   int64_t num_classes) {
  check_classes(num_classes);
  check_ids(pred, "pred");
  check_ids(label, "label");
  TORCH_CHECK(pred.sizes() == label.sizes(), "pred and label differ in shape: ", pred.sizes(),
              " and ", label.sizes());
  check_device(pred, label);
}

inline void check_argmax_upsample(const at::Tensor& logits, at::IntArrayRef size) {
  const at::ScalarType type = logits.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "logits must be float32, bfloat16 or float16, got ", type);
  TORCH_CHECK(logits.dim() == 4, "logits must be [N, C, h, w], got ", logits.sizes());
  TORCH_CHECK(size.size() == 2, "size must be (H, W), got ", size);
  check_classes(logits.size(1));
  TORCH_CHECK(logits.size(2) > 0, "logits have no rows");
  TORCH_CHECK(logits.size(3) > 0, "logits have no columns");
  TORCH_CHECK(size[0] >= 0 && size[1] >= 0, "size must not be negative, got ", size);
}

inline void check_soft_vote(at::TensorList members, at::IntArrayRef size,
                            at::ArrayRef<double> weights) {
  TORCH_CHECK(!members.empty() && members.size() <= kMostSoftMembers, "there must be 1..",
              kMostSoftMembers, " members, got ", members.size());
  TORCH_CHECK(members.size() == weights.size(), members.size(), " members but ", weights.size(),
              " weights");
  for (const at::Tensor& member : members) {
    check_argmax_upsample(member, size);
    TORCH_CHECK(member.size(0) == members[0].size(0) && member.size(1) == members[0].size(1),
                "members differ in N or C: ", member.sizes(), " and ", members[0].sizes());
    check_device(member, members[0]);
  }
  for (const double weight : weights) {
    TORCH_CHECK(weight >= 1e-30 && weight <= 1e30, "weights must lie in 1e-30..1e30, got ", weights);
  }
}

inline void check_mix(at::TensorList a, at::TensorList b) {
  TORCH_CHECK(!a.empty() && a.size() <= kMostEntries, "there must be 1..", kMostEntries,
              " entries, got ", a.size());
  TORCH_CHECK(a.size() == b.size(), "a has ", a.size(), " entries, b has ", b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    TORCH_CHECK(a[i].sizes() == b[i].sizes() && a[i].dtype() == b[i].dtype(), "a has ",
                a[i].sizes(), " ", a[i].dtype(), ", b has ", b[i].sizes(), " ", b[i].dtype());
    TORCH_CHECK(a[i].dim() == 3 || a[i].dim() == 4,
                "an entry must be [N, H, W] or [N, C, H, W], got ", a[i].dim(), "-D");
    TORCH_CHECK(a[i].size(0) == a[0].size(0) && a[i].size(-2) == a[0].size(-2) &&
                    a[i].size(-1) == a[0].size(-1),
                "entries differ in N, H or W: ", a[i].sizes(), " and ", a[0].sizes());
    check_device(a[i], a[0]);
    check_device(b[i], a[0]);
  }
}

inline void check_cutmix(at::TensorList a, at::TensorList b, const at::Tensor& boxes) {
  check_mix(a, b);
  TORCH_CHECK(boxes.scalar_type() == at::kLong, "boxes must be int64, got ", boxes.scalar_type());
  TORCH_CHECK(boxes.dim() == 3 && boxes.size(0) == a[0].size(0) && boxes.size(2) == 4,
              "boxes must be [", a[0].size(0), ", K, 4], got ", boxes.sizes());
  check_device(boxes, a[0]);
}

inline void check_classmix(at::TensorList a, at::TensorList b, const at::Tensor& label,
                           const at::Tensor& classes) {
  check_mix(a, b);
  const int64_t samples = a[0].size(0), height = a[0].size(-2), width = a[0].size(-1);
  TORCH_CHECK(label.scalar_type() == at::kByte, "label must be uint8, got ", label.scalar_type());
  TORCH_CHECK(label.sizes() == at::IntArrayRef({samples, height, width}), "label must be [",
              samples, ", ", height, ", ", width, "], got ", label.sizes());
  TORCH_CHECK(
      classes.scalar_type() == at::kBool && classes.sizes() == at::IntArrayRef({samples, 256}),
      "classes must be bool [", samples, ", 256], got ", classes.scalar_type(), " ",
      classes.sizes());
  check_device(label, a[0]);
  check_device(classes, a[0]);
}

inline void check_hard_vote(const at::Tensor& predictions, int64_t num_classes,
                            const std::optional<at::ArrayRef<double>>& weights) {
  check_classes(num_classes);
  TORCH_CHECK(predictions.scalar_type() == at::kByte, "predictions must be uint8, got ",
              predictions.scalar_type());
  TORCH_CHECK(predictions.dim() >= 1, "predictions must be [M, ...]");
  const int64_t members = predictions.size(0);
  TORCH_CHECK(members >= 1 && members <= 255, "there must be 1..255 members, got ", members);
  if (!weights) return;
  TORCH_CHECK(static_cast<int64_t>(weights->size()) == members, members, " members but ",
              weights->size(), " weights");
  for (const double weight : *weights) {
    TORCH_CHECK(weight >= 1e-30 && weight <= 1e30, "weights must lie in 1e-30..1e30, got ",
                *weights);
  }
}

inline void check_confidence_histogram(const at::Tensor& confidence, const at::Tensor& pred,
                                       int64_t num_classes, int64_t bins,
                                       const std::optional<at::Tensor>& label) {
  check_classes(num_classes);
  TORCH_CHECK(bins >= 1 && bins <= 4096, "bins must be 1..4096, got ", bins);
  TORCH_CHECK(confidence.scalar_type() == at::kFloat, "confidence must be float32, got ",
              confidence.scalar_type());
  TORCH_CHECK(pred.scalar_type() == at::kByte, "pred must be uint8, got ", pred.scalar_type());
  TORCH_CHECK(confidence.sizes() == pred.sizes(), "confidence and pred differ in shape: ",
              confidence.sizes(), " and ", pred.sizes());
  check_device(confidence, pred);
  if (!label) return;
  TORCH_CHECK(label->scalar_type() == at::kByte, "label must be uint8, got ", label->scalar_type());
  TORCH_CHECK(label->sizes() == pred.sizes(), "label and pred differ in shape: ", label->sizes(),
              " and ", pred.sizes());
  check_device(*label, pred);
}

inline void check_boundary_map(const at::Tensor& label, int64_t radius) {
  TORCH_CHECK(label.scalar_type() == at::kByte, "label must be uint8, got ", label.scalar_type());
  TORCH_CHECK(label.dim() == 3, "label must be [N, H, W], got ", label.sizes());
  TORCH_CHECK(radius >= 0 && radius <= kMostRadius, "radius must be 0..", kMostRadius, ", got ",
              radius);
}

}  // namespace
