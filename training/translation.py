"""What CycleGAN learns by: two cycles, two judges that see older translations too, and a decay."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from models.cyclegan import Discriminator, Generators, initialise


class Game(nn.Module):
    """The four networks: `generators`, and a judge of either domain's images.

    Args:
        blocks, width: of the generators; the judges are as wide.
    """

    def __init__(self, blocks: int = 9, width: int = 64) -> None:
        super().__init__()
        self.generators = Generators(blocks, width)
        self.judge_a, self.judge_b = Discriminator(width), Discriminator(width)
        initialise(self)

    def judges(self) -> nn.ModuleList:
        """Return both judges."""
        return nn.ModuleList([self.judge_a, self.judge_b])

    def played(
        self, a: Tensor, b: Tensor, cycle: float, identity: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the generators' weighted loss terms by name, and their translations.

        Args:
            a, b: images of the domains, float [N,3,H,W], -1 to 1.
            cycle: weight of the way there and back.
            identity: weight of leaving images of the own domain as they are, as a share of `cycle`.
        Returns:
            the terms; a in the look of b; b in the look of a.

        Source: Zhu et al. 2017, equations 1 to 3 with least squares (section 4), and the identity
            term of section 5.2.
        """
        ab, ba = self.generators.ab, self.generators.ba
        fake_b, fake_a = ab(a), ba(b)
        terms = {
            "judged": fools(self.judge_b(fake_b)) + fools(self.judge_a(fake_a)),
            "cycle": cycle * (l1_loss(ba(fake_b), a) + l1_loss(ab(fake_a), b)),
        }
        if identity:
            terms["identity"] = cycle * identity * (l1_loss(ab(b), b) + l1_loss(ba(a), a))
        return terms, fake_b.detach(), fake_a.detach()

    def judged(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> dict[str, Tensor]:
        """Return the judges' loss terms by name: real images are 1, translated ones 0."""
        return {
            "judge_a": judging(self.judge_a, a, fake_a),
            "judge_b": judging(self.judge_b, b, fake_b),
        }


def fools(verdict: Tensor) -> Tensor:
    """Return how far a judge is from taking translations for real, in least squares."""
    return mse_loss(verdict, torch.ones_like(verdict))


def judging(judge: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return a judge's loss, halved so that it learns more slowly than the generators."""
    right, wrong = judge(real), judge(fake)
    return (fools(right) + mse_loss(wrong, torch.zeros_like(wrong))) / 2


class Pool:
    """Translations of earlier steps, of which a judge is shown one in two.

    Source: Shrivastava et al. 2017, as the authors of CycleGAN use it.

    Args:
        size: images that are kept; 0 keeps none.
    """

    def __init__(self, size: int = 50) -> None:
        self.size, self.images = size, []

    def swapped(self, images: Tensor) -> Tensor:
        """Return each image [N,3,H,W], or an older one, in whose place it is kept.

        Numbers are drawn from torch's generator, which is seeded at every step.
        """
        shown = []
        for image in images:
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and torch.rand(()) > 0.5:
                place = int(torch.randint(self.size, ()))
                older, self.images[place] = self.images[place], image.clone()
                image = older
            shown.append(image)
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Any]:
        """Return the images, for a checkpoint."""
        return {"images": [image.cpu() for image in self.images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the images of a checkpoint."""
        self.images = list(state["images"])


def rate_at(step: int, num_steps: int, rate: float) -> float:
    """Return the learning rate: constant in the first half, then falling to 0 in a line."""
    half = num_steps // 2
    return rate * min(1.0, (num_steps - step) / max(1, num_steps - half))
