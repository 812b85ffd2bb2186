"""Time networks beside smp's and torchvision's of the same name, in turns, in one process.

    PYTHONPATH=. .venv-peers/bin/python tests/models/time_peers.py [ROUNDS]

`make test-peers` makes .venv-peers. Prints medians of the rounds: milliseconds of ours, and ours
over theirs, of a forward pass in evaluation (one image) and of a training step (two images), in
float32, by OMP_NUM_THREADS threads.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import peers
from models import build_model
from tools.benchmark.timing import alternate, compare

HEIGHT, WIDTH, CLASSES = 256, 512, 19


def pairs() -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return ours and theirs by name, with random weights."""
    import segmentation_models_pytorch as smp
    from torchvision.models import segmentation

    how = {"encoder_weights": None, "classes": CLASSES}
    bare = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    return {
        "unet resnet34, smp": (build_model("unet", CLASSES), smp.Unet("resnet34", **how)),
        "fpn resnet34, smp": (build_model("fpn", CLASSES), smp.FPN("resnet34", **how)),
        "deeplabv3plus resnet34, smp": (
            build_model("deeplabv3plus", CLASSES, encoder="resnet34", head="separable"),
            smp.DeepLabV3Plus("resnet34", **how),
        ),
        "segformer mit_b0, smp": (
            build_model("segformer", CLASSES, style="smp"),
            smp.Segformer("mit_b0", **how),
        ),
        "fcn resnet50, torchvision": (
            build_model("fcn", CLASSES, encoder="resnet50"),
            segmentation.fcn_resnet50(**bare),
        ),
        "deeplabv3 resnet50, torchvision": (
            build_model("deeplabv3", CLASSES, encoder="resnet50"),
            segmentation.deeplabv3_resnet50(**bare),
        ),
    }


def full_size(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return logits at the size of the images, whoever's network it is."""
    out = network(images)
    out = out["out"] if isinstance(out, dict) else out
    if out.shape[-2:] != images.shape[-2:]:
        out = F.interpolate(out, images.shape[-2:], mode="bilinear", align_corners=False)
    return out


def forward(network: nn.Module) -> Callable:
    images = torch.randn(1, 3, HEIGHT, WIDTH)

    def call() -> None:
        with torch.inference_mode():
            full_size(network.eval(), images)

    return call


def step(network: nn.Module) -> Callable:
    images = torch.randn(2, 3, HEIGHT, WIDTH)
    label = torch.randint(CLASSES, (2, HEIGHT, WIDTH))
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9)

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(full_size(network.train(), images), label).backward()
        optimizer.step()

    return call


if __name__ == "__main__":
    peers.need()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(
        f"{'ms, and over theirs':34}{'forward':>16}{'step':>18}   {torch.get_num_threads()} threads"
    )
    for name, networks in pairs().items():
        shown = []
        for make in (forward, step):
            times = alternate([make(one) for one in networks], torch.device("cpu"), rounds)
            found = compare(*times)
            shown.append(f"{found['ours_ms']:9.0f} {1 / found['ratio']:6.2f}")
        print(f"{name:34}{shown[0]}  {shown[1]}", flush=True)
