"""Prediction: views, windows and sizes against what can be worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from datasets import build_dataset
from datasets.loading import on_device
from engine.errors import UserError
from engine.values import Loading, Views
from inference.loop import evaluate, predict
from inference.predictor import Ensemble, Predictor
from models import Network

PLAIN = {"order": "RGB", "mean": [0.0] * 3, "std": [255.0] * 3}


class Cells(Network):
    """Classes from the mean colours of cells: what a cell says depends on nothing around it."""

    def __init__(self, stride: int, num_classes: int = 3):
        super().__init__()
        self.normalisation = PLAIN
        self.pool = nn.AvgPool2d(stride, ceil_mode=True)
        self.head = nn.Conv2d(3, num_classes, 1)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.randn(num_classes, 3, 1, 1))
        self.eval()

    def forward(self, images, aux=True):
        return {"out": self.head(self.pool(images))}


class Sides(Network):
    """One cell: class 0 as bright as the left half of the image, class 1 as the right half."""

    def __init__(self, gain: float = 2.0):
        super().__init__()
        self.normalisation = PLAIN
        self.gain = nn.Parameter(torch.tensor(gain))
        self.eval()

    def forward(self, images, aux=True):
        left, right = images.chunk(2, dim=3)
        cells = torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)
        return {"out": self.gain * cells[:, :, None, None]}


@pytest.fixture
def images():
    """Return two images of 96x64 pixels in blocks of 8x8."""
    torch.manual_seed(3)
    blocks = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_mirrored_view_of_a_symmetric_model_changes_nothing(images):
    torch.manual_seed(0)
    model = Cells(8)
    plain, mirrored = Predictor(model), Predictor(model, views=Views(flip=True))
    ids, confidence = plain(images, (128, 192), with_confidence=True)
    ids_flip, confidence_flip = mirrored(images, (128, 192), with_confidence=True)
    assert torch.equal(ids, ids_flip)
    torch.testing.assert_close(confidence, confidence_flip)
    assert len(ids.unique()) == 3


def test_views_are_averaged_as_probabilities():
    image = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    image[..., :4] = 255  # logits 2 and 0: class 0 with probability e^2 / (e^2 + 1)
    ids, confidence = Predictor(Sides())(image, (1, 1), with_confidence=True)
    assert ids.item() == 0
    assert confidence.item() == pytest.approx(0.880797)
    assert Predictor(Sides())(image.flip(3), (1, 1)).item() == 1
    # with the mirrored view both classes have the same mean, 1/2
    confidence = Predictor(Sides(), views=Views(flip=True))(image, (1, 1), with_confidence=True)[1]
    assert confidence.item() == pytest.approx(0.5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_resized_as_the_protocol_says(images, align_corners):
    torch.manual_seed(0)
    model = Cells(8)
    model.align_corners = align_corners
    ids = Predictor(model)(images, (37, 53))
    logits = Predictor(model).logits(images)
    size = {"size": (37, 53), "mode": "bilinear"}
    this, other = (
        F.interpolate(logits, **size, align_corners=choice).argmax(1)
        for choice in (align_corners, not align_corners)
    )
    assert (ids == this).float().mean() > 0.999  # ties within rounding may go either way
    assert (ids == other).float().mean() < 0.98


def test_probabilities_that_underflow_do_not_spread():
    image = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    image[..., :4] = 255
    model = Sides(gain=1000.0)
    logits = Predictor(model, views=Views(scales=(1.0, 1.0))).logits(image)
    assert logits.isfinite().all()
    assert logits.argmax(1).item() == 0


def test_one_view_twice_is_one_view(images):
    torch.manual_seed(0)
    model = Cells(8)
    once = Predictor(model)(images, (64, 96), with_confidence=True)
    twice = Predictor(model, views=Views(scales=(1.0, 1.0)))(images, (64, 96), with_confidence=True)
    assert torch.equal(once[0], twice[0])
    torch.testing.assert_close(once[1], twice[1])


def test_scales_of_a_uniform_image_agree_on_the_largest_grid():
    torch.manual_seed(0)
    model = Cells(8)
    image = torch.full((1, 3, 48, 80), 90, dtype=torch.uint8)
    plain = Predictor(model).logits(image)
    scaled = Predictor(model, views=Views(scales=(0.5, 1.0, 1.5))).logits(image)
    assert scaled.shape[2:] == (9, 15)
    torch.testing.assert_close(scaled[:, :, 4, 4], plain.log_softmax(1)[:, :, 2, 2])


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (200, 37), (33, 300)])
def test_windows_equal_the_whole_for_a_model_without_context(size):
    torch.manual_seed(1)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    model = Cells(8)
    whole = Predictor(model).logits(image)
    windows = Predictor(model, views=Views(slide=(64, 32))).logits(image)
    torch.testing.assert_close(windows, whole)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "compact"},
        {"name": "deeplabv2", "backbone": "resnet50"},
        {"name": "deeplabv3plus", "backbone": "resnet18"},
        {"name": "deeplabv3plus", "backbone": "efficientnet_lite0"},
    ],
    ids=lambda network: network.get("backbone", network["name"]),
)
def test_windows_cover_the_grid_of_every_network(network):
    model = models.build_model(num_classes=4, **network).eval()
    image = torch.zeros(1, 3, 99, 133, dtype=torch.uint8)
    whole = Predictor(model).logits(image)
    windows = Predictor(model, views=Views(slide=(64, 64))).logits(image)
    assert windows.shape == whole.shape
    assert windows.isfinite().all()  # a cell that no window covers would be 0 / 0
    assert torch.equal(Predictor(model, views=Views(slide=(192, 192))).logits(image), whole)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"slide": (100, 96)}, "multiples of 32"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"scales": (1.0, float("nan"))}, "above 0"),
        ({"scales": (float("inf"),)}, "finite"),
        ({"scales": ()}, "above 0"),
    ],
)
def test_views_that_cannot_be(how, said):
    with pytest.raises(UserError, match=said):
        Predictor(Cells(8), views=Views(**how))


def test_window_of_too_few_cells():
    with pytest.raises(UserError, match="only 2 cells"):
        Predictor(Cells(16), views=Views(slide=(32, 32))).logits(
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        )


class LargestFloat(TorchDispatchMode):
    """Record the largest floating-point tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("how", [{}, {"scales": (0.5, 1.0), "flip": True}, {"slide": (64, 32)}])
def test_full_size_logits_never_exist(how):
    image = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    height, width = 512, 1024
    predictor = Predictor(Cells(8, num_classes=19), views=Views(**how))
    with LargestFloat() as largest:
        predictor(image, (height, width), with_confidence=True)
    assert 0 < largest.numel <= height * width  # one plane, not 19


def test_prediction_has_the_size_of_the_file_without_labels(camvid):
    dataset = build_dataset("camvid", camvid, split="val", labelled=False, size=(24, 16))
    predictor = Predictor(Cells(8))
    for batch, pred, confidence in predict(predictor, dataset, Loading()):
        assert batch["image"].shape[2:] == (16, 24)
        assert pred.shape == (1, 24, 40)
        assert confidence is None


def test_batches_of_several_sizes_are_refused(camvid):
    Image.new("RGB", (20, 24)).save(camvid / "val" / "0016E5_07961.png")
    Image.new("L", (20, 24)).save(camvid / "valannot" / "0016E5_07961.png")
    dataset = build_dataset("camvid", camvid, split="val", resize_label=False)
    batches = predict(Predictor(Cells(8)), dataset, Loading(), batch_size=2)
    with pytest.raises(UserError, match=r"7959.png and .*7961.png differ in size: give"):
        next(batches)


def test_the_next_batch_is_sent_before_this_one_is_worked_on():
    happened = []

    def batches():
        for number in range(3):
            happened.append(f"loaded {number}")
            yield {"image": torch.full((2,), number), "name": [str(number)]}

    for batch in on_device(batches(), torch.device("cpu")):
        happened.append(f"given {batch['image'].tolist()} {batch['name']}")
    assert happened == [
        "loaded 0",
        "loaded 1",
        "given [0, 0] ['0']",
        "loaded 2",
        "given [1, 1] ['1']",
        "given [2, 2] ['2']",
    ]
    assert list(on_device(iter([]), torch.device("cpu"))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_whole_on_a_gpu():
    device = torch.device("cuda")
    pinned = (
        {"image": torch.full((1 << 24,), n, dtype=torch.uint8).pin_memory()} for n in range(9)
    )
    busy = torch.ones(4096, 4096, device=device)
    sums = []
    for batch in on_device(pinned, device):
        busy = (busy @ busy).clamp(max=1)  # the copies run beside it, and memory is used again
        sums.append(batch["image"].sum())
    assert [int(total) >> 24 for total in sums] == list(range(9))


# ------------------------------------------------------------------ precision


@pytest.fixture(scope="module")
def trained():
    """Return a network with batch norms that has learned the streets, and their val set."""
    torch.manual_seed(0)
    train, val = (
        build_dataset("streets", None, split=split, size=(80, 48)) for split in ("train", "val")
    )
    model = models.build_model("compact", train.num_classes, width=16, norm="batch").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(50):
        samples = [train[(8 * step + i) % len(train)] for i in range(8)]
        images, labels = (torch.stack([s[key] for s in samples]) for key in ("image", "label"))
        logits = model(models.normalise(images, model.normalisation))["out"]
        logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels.long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), val


def test_folding_and_bf16_move_miou_by_no_more_than_rounding_does(trained):
    model, val = trained
    folded = models.fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    plain, fp32, bf16 = (
        evaluate(Predictor(network, precision), val, Loading(), batch_size=8)
        for network, precision in ((model, "fp32"), (folded, "fp32"), (folded, "bf16"))
    )
    miou = plain.compute()["miou"]
    assert miou > 30  # it has learned something to lose
    assert fp32.compute()["miou"] == pytest.approx(miou, abs=0.01)
    assert bf16.compute()["miou"] == pytest.approx(miou, abs=0.1)


# ------------------------------------------------------------------ several networks


def test_networks_are_averaged_as_probabilities():
    image = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    image[..., :4] = 255  # class 0 with probability e^2 / (e^2 + 1) = 0.880797, then 0.119203
    members = [Predictor(Sides(gain=2.0)), Predictor(Sides(gain=-2.0))]
    confidence = Ensemble(members)(image, (1, 1), with_confidence=True)[1]
    assert confidence.item() == pytest.approx(0.5)
    ids, confidence = Ensemble(members, [1, 3])(image, (1, 1), with_confidence=True)
    assert ids.item() == 1
    assert confidence.item() == pytest.approx(0.25 * 0.119203 + 0.75 * 0.880797)


def test_an_ensemble_of_one_is_that_network(images):
    torch.manual_seed(0)
    alone = Predictor(Cells(8), views=Views((0.5, 1.0), flip=True))
    one, same = alone(images, (128, 192), True), Ensemble([alone])(images, (128, 192), True)
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])


def test_networks_of_several_strides_meet_on_the_finest_grid():
    torch.manual_seed(0)
    fine, coarse = Cells(4), Cells(8)
    coarse.head.load_state_dict(fine.head.state_dict())
    image = torch.full((1, 3, 32, 48), 90, dtype=torch.uint8)
    ensemble = Ensemble([Predictor(coarse), Predictor(fine)])
    logits = ensemble.logits(image)
    assert logits.shape == (1, 3, 8, 12)
    torch.testing.assert_close(logits.softmax(1), Predictor(fine).logits(image).softmax(1))
