"""Programs that draw a run while it goes, where installed: TensorBoard, Weights & Biases."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.files import digest

Options = Mapping[str, Any]


class TensorBoard:
    """Events in the run's folder.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard") from None
        self._writer = SummaryWriter(str(folder))
        lines = [f"    {key}: {json.dumps(value, default=str)}" for key, value in options.items()]
        self._writer.add_text("options", "\n".join(lines), 0)  # indented: Markdown leaves it alone

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Draw numbers by name."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture, uint8 [H,W,3]."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project segshift; with WANDB_MODE=offline in the folder alone, to be synced.

    A run that is resumed goes on as the same one.

    Raises:
        UserError: the package is not installed, or refuses.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs the package wandb") from None
        self._wandb, place = wandb, folder.resolve()
        try:
            self._run = wandb.init(
                project="segshift",
                dir=str(place),
                name=place.name,
                id=digest(str(place).encode()),
                resume="allow",
                config=json.loads(json.dumps(dict(options), default=str)),
            )
        except wandb.Error as error:
            cause = str(error).splitlines()[0]
            raise UserError(f"--wandb: {cause}; WANDB_MODE=offline needs no account") from error

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Draw numbers by name."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture, uint8 [H,W,3]."""
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Hand over what is left."""
        self._run.finish()


BOARDS: dict[str, Callable[[Path, Options], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
