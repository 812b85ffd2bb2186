"""Files of other projects by their names and shapes alone: every tensor is read, or says why not.

keys.tsv.xz holds 69 lists, each `# NAME`, then a line for each tensor: key, tab, shape (64x3x7x7;
nothing for a number). NAME is PROJECT_NETWORK_ENCODER_CLASSES, more or less as the project has it.
"""

import lzma
from pathlib import Path

import pytest
import torch

from engine import words
from models import MODELS, build_model
from models.fit import fit_state

CLASSIFIER, UNUSED = "of the classifier of images", "in the file, used by nobody"
# name -> the network here, and how many tensors are left out for which reason
NETWORKS: dict[str, tuple[str, dict[str, int]]] = {
    "attu_net_19": ("attention_unet", {}),
    "deeplabv1_largefov_21": ("deeplabv1", {}),
    "fcn16s_21": ("fcn16s", {}),
    "fcn32s_21": ("fcn32s", {}),
    "fcn8s_21": ("fcn8s", {}),
    "hf_segformer_b0_19": ("segformer", {}),
    "hrnet_ocr_w18_19": ("ocrnet", {}),
    "hrnet_ocr_w48_19": ("ocrnet encoder=hrnet_w48", {}),
    "hrnet_w18_19": ("hrnet", {}),
    "hrnet_w48_19": ("hrnet encoder=hrnet_w48", {}),
    "kazuto_deeplabv2_r101_21": ("deeplabv2", {}),
    **{f"pidnet_{s}_19": (f"pidnet size={s}", {}) for s in "sml"},
    **{f"pidnet_{s}_19_augment": (f"pidnet size={s} boundary=yes", {}) for s in "sml"},
    "segformer_b0_19": ("segformer", {UNUSED: 2}),
    "segformer_b5_19": ("segformer encoder=mit_b5", {UNUSED: 2}),
    "segnet_ptsemseg_19": ("segnet clipped=yes", {}),
    "smp_DeepLabV3Plus_resnet34_19": ("deeplabv3plus encoder=resnet34 head=separable", {}),
    "smp_DeepLabV3_resnet34_19": ("deeplabv3 encoder=resnet34 style=smp", {}),
    "smp_FPN_resnet34_19": ("fpn", {}),
    "smp_Linknet_resnet34_19": ("linknet", {}),
    "smp_PSPNet_resnet34_19": ("pspnet", {}),
    "smp_Segformer_mit_b0_19": ("segformer style=smp", {}),
    "smp_Segformer_resnet34_19": ("segformer encoder=resnet34", {}),
    "smp_UPerNet_resnet34_19": ("upernet", {}),
    "smp_UnetPlusPlus_resnet34_19": ("unetplusplus", {}),
    "smp_Unet_densenet161_19": ("unet encoder=densenet161", {}),
    "smp_Unet_efficientnet-b0_19": ("unet encoder=efficientnet_b0", {CLASSIFIER: 6}),
    "smp_Unet_efficientnet-b4_19": ("unet encoder=efficientnet_b4", {CLASSIFIER: 6}),
    "smp_Unet_mit_b0_19": ("unet encoder=mit_b0", {}),
    "smp_Unet_mit_b5_19": ("unet encoder=mit_b5", {}),
    "smp_Unet_mobilenet_v2_19": ("unet encoder=mobilenet_v2", {}),
    "smp_Unet_resnet101_19": ("unet encoder=resnet101", {}),
    "smp_Unet_resnet34_19": ("unet", {}),
    "smp_Unet_resnet34_19_scse": ("unet attention=scse", {}),
    "smp_Unet_resnext50_32x4d_19": ("unet encoder=resnext50_32x4d", {}),
    "smp_Unet_se_resnext50_32x4d_19": ("unet encoder=se_resnext50_32x4d", {}),
    "smp_Unet_timm-efficientnet-b0_19": ("unet encoder=timm_efficientnet_b0", {CLASSIFIER: 6}),
    "smp_Unet_tu-convnext_tiny_19": ("unet encoder=convnext_tiny", {}),
    "smp_Unet_vgg16_bn_19": ("unet encoder=vgg16_bn", {}),
    "smp_Unet_xception_19": ("unet encoder=xception", {}),
    **{
        f"torchvision_{name}_{encoder}_19_aux": (f"{name} encoder={encoder} multi_level=yes", {})
        for name in ("fcn", "deeplabv3")
        for encoder in ("resnet50", "resnet101")
    },
    "upernet_beit_base_150_img640": ("upernet encoder=beit_base multi_level=yes", {}),
    "upernet_beit_base_19_img64": (
        "upernet encoder=beit_base multi_level=yes image_size=64",
        {},
    ),
    "upernet_convnext_tiny_19": ("upernet encoder=convnext_tiny multi_level=yes", {}),
}
# name -> the encoder here, and how many tensors are of the classifier
ENCODERS: dict[str, tuple[str, int]] = {
    "convnext_base_1000": ("convnext_base", 4),
    "convnext_tiny_1000": ("convnext_tiny", 4),
    "segformer_mit_b0": ("mit_b0", 0),
    "segformer_mit_b5": ("mit_b5", 0),
    "timm_beit_base_patch16_224": ("beit_base", 4),
    "timm_convnext_tiny": ("convnext_tiny", 4),
    "timm_densenet161": ("densenet161", 2),
    "timm_efficientnet_b0": ("timm_efficientnet_b0", 8),
    "timm_efficientnet_lite0": ("timm_efficientnet_lite0", 8),
    "timm_hrnet_w18": ("hrnet_w18", 126),
    "timm_hrnet_w48": ("hrnet_w48", 126),
    "timm_legacy_xception": ("xception", 2),
    "timm_resnet50": ("resnet50", 2),
    "timm_resnext50_32x4d": ("resnext50_32x4d", 2),
    "timm_seresnext50_32x4d": ("seresnext50_32x4d", 2),
    "timm_vgg16": ("vgg16", 6),
    "timm_vgg16_bn": ("vgg16_bn", 6),
}
MADE_HERE = ("encoder.fpn",)  # of BEiT: what makes maps of its tokens, in no classifier's file


def read_lists() -> dict[str, dict[str, torch.Size]]:
    lists: dict[str, dict[str, torch.Size]] = {}
    text = lzma.decompress(Path(__file__).with_name("keys.tsv.xz").read_bytes()).decode()
    for line in text.splitlines():
        if line.startswith("# "):
            current = lists[line.removeprefix("# ")] = {}
        else:
            key, shape = line.split("\t")
            current[key] = torch.Size(int(n) for n in shape.split("x") if n)
    return lists


LISTS = read_lists()


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Tensors that nothing was written to, which take no memory."""
    return {key: torch.empty(shape) for key, shape in LISTS[name].items()}


def on_meta(line: str, classes: int) -> torch.nn.Module:
    name, *given = line.split()
    pairs = [word.partition("=")[::2] for word in given]
    with torch.device("meta"):
        return build_model(name, classes, **words.bind(f"model {name}", MODELS[name], pairs))


def reasons(skipped: dict[str, str]) -> dict[str, int]:
    return {reason: [*skipped.values()].count(reason) for reason in set(skipped.values())}


def test_every_list_has_its_line():
    assert set(LISTS) == {*NETWORKS, *ENCODERS, "kazuto_deeplabv1_r101_21"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_s_file_is_read_whole(name: str):
    line, left_out = NETWORKS[name]
    classes = next(int(part) for part in name.split("_")[::-1] if part in ("19", "21", "150"))
    network = on_meta(line, classes)
    fit = fit_state(network, state_of(name), name, strict=True)
    assert fit.missing(network) == []
    assert reasons(fit.skipped) == left_out
    if not left_out:
        assert len(fit.loaded) == len(network.state_dict())


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_s_file_is_read_whole(name: str):
    encoder, classifier = ENCODERS[name]
    network = on_meta(f"fpn encoder={encoder}", 19)
    fit = fit_state(network, state_of(name), name)
    missing = [one for one in fit.missing(network) if one.startswith("encoder.")]
    assert all(one.startswith(MADE_HERE) for one in missing), missing
    assert fit.unknown == {}
    assert fit.mismatched == {}
    assert reasons(fit.skipped) == ({CLASSIFIER: classifier} if classifier else {})


def test_coco_s_resnet_of_kazuto1011_begins_deeplabv2():
    network = on_meta("deeplabv2", 19)
    name = "kazuto_deeplabv1_r101_21"
    fit = fit_state(network, state_of(name), name)
    assert {one.split(".")[0] for one in fit.missing(network)} == {"layer5"}
    assert (fit.unknown, fit.mismatched) == ({}, {})
    assert reasons(fit.skipped) == {CLASSIFIER: 2}
