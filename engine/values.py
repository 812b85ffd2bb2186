"""Values that belong together: options make them, functions take them as one."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Images:
    """Which images of which dataset, and in which size; see `datasets.build_dataset`.

    Attributes:
        dataset: name; None for the one that a checkpoint was validated on.
        root: the data folder; None for the checkpoint's, or for a dataset without files.
        split: of the dataset; None for the checkpoint's, else val.
        list_file: instead of a split.
        size: W, H in pixels that images are resized to, or their longer side, the ratio kept; None
            for the checkpoint's, else their own.
        num_images: use so many, at random.
        seed: of that choice.
        cache_dir: where decoded samples are kept.
        options: the dataset's own.
    """

    dataset: str | None = None
    root: str | None = None
    split: str | None = None
    list_file: str | None = None
    size: tuple[int, int] | int | None = None
    num_images: int | None = None
    seed: int = 0
    cache_dir: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """Which labelled images choose the best checkpoint.

    Attributes:
        on: target, source or none of them; auto: the target's where it has labels.
        split: of the dataset; None for val or, where there is none, images held out of training.
        list_file: instead of a split.
        sets: images of their own instead, by name; the first choose the best checkpoint.
    """

    on: str = "auto"
    split: str | None = None
    list_file: str | None = None
    sets: dict[str, Images] = field(default_factory=dict)


@dataclass(frozen=True)
class Loading:
    """How samples come from the disk.

    Attributes:
        num_workers: processes that decode; 0 decodes in the main one.
        timeout_seconds: of one batch, with workers; 0 waits for ever.
    """

    num_workers: int = 0
    timeout_seconds: float = 0


@dataclass(frozen=True)
class Views:
    """How an image is shown to a network; its probabilities are averaged over the views.

    Attributes:
        scales: factors of the input size, each above 0.
        flip: add the mirrored image of every scale.
        slide: windows of W, H input pixels, multiples of 32; None for the whole image at once.
        temperature: divide logits by the checkpoint's (`tools.calibrate`).
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    slide: tuple[int, int] | None = None
    temperature: bool = False


@dataclass(frozen=True)
class Foreign:
    """What weights of other projects do not say themselves.

    Attributes:
        architecture: name and options of `models.build_model`.
        entry: of the file; None for the one that is most likely meant.
    """

    architecture: dict[str, Any]
    entry: str | None = None


@dataclass(frozen=True)
class Training:
    """How a network is built and trained.

    Attributes:
        architecture: name and options of `models.build_model`.
        classes: their names, in the order of their ids.
        weights: what it starts from, one after the other: files, "imagenet"; None for nothing.
        weights_entry: of the last of these files; None for the one that is most likely meant.
        seed: of the random weights.
        loss: words of --loss; None for the network's own.
        aux_weight: of the auxiliary output's loss; None for the network's own.
        align_corners: how logits are resized; None for the network's own.
        optimizer: sgd, adam, adamw or adamp, with its learning_rate, momentum, weight_decay and
            whether the momentum is Nesterov's.
        backbone_rate, layer_decay, norm_decay: see `training.schedule.parameter_groups`.
        clip_norm: the norm that gradients are scaled down to; None for any.
        average: momentum of the running average of the weights that is scored and published; None
            for the weights themselves.
        num_steps: of the schedule, with its warmup_steps.
        schedule: its words.
        iter_size: batches of a step.
        precision: bf16 or fp32.
        compiled: by torch.compile.
        recompute: activations in backward.
        sync_bn: batch norm over the images of all processes.
    """

    architecture: dict[str, Any]
    classes: tuple[str, ...] = ()
    weights: tuple[str | None, ...] = ()
    weights_entry: str | None = None
    seed: int = 0
    loss: list[str] | None = None
    aux_weight: float | None = None
    align_corners: bool | None = None
    optimizer: str = "sgd"
    learning_rate: float = 2.5e-4
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    backbone_rate: float = 1.0
    layer_decay: float = 1.0
    norm_decay: bool = True
    clip_norm: float | None = None
    average: float | None = None
    num_steps: int = 250_000
    schedule: tuple[str, ...] = ("poly",)
    warmup_steps: int = 0
    iter_size: int = 1
    precision: str = "fp32"
    compiled: bool = False
    recompute: bool = False
    sync_bn: bool = False


@dataclass(frozen=True)
class Saving:
    """What a run writes, and how often.

    Attributes:
        print_every: steps between lines of the log.
        score_every: steps between validations, each published as a checkpoint.
        every_minutes: between saves of `last.pth` beside those; 0 for none.
        keep_last: how many published steps stay, the newest ones; None keeps all.
        format: of published checkpoints: pth or safetensors.
        boards: names of `training.boards.BOARDS` that draw the run too.
    """

    print_every: int = 50
    score_every: int = 5000
    every_minutes: float = 0
    keep_last: int | None = None
    format: str = "pth"
    boards: tuple[str, ...] = ()
