"""What a vote needs beside the kernel: ballots read ahead, agreement, choosing the members."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

import kernels
from engine import processes
from inference.metrics import ConfusionMatrix
from inference.predictor import Ensemble, log_probs


def read_ahead(read: Callable, items: Iterable, num_threads: int = 2) -> Iterator[Any]:
    """Yield `read(item)` of every item in order, while threads read the next few."""
    waiting: deque = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for item in items:
            waiting.append(threads.submit(read, item))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().result()
        for call in waiting:
            yield call.result()


class Voters:
    """Predict with every network; stands where `inference.predict` takes a predictor.

    Args:
        ensemble: of the networks.
        soft: add the vote of the mean of their probabilities.
    """

    def __init__(self, ensemble: Ensemble, soft: bool) -> None:
        self.ensemble, self.soft = ensemble, soft
        self.device = ensemble.device

    @torch.inference_mode()
    def __call__(self, images: Tensor, size: tuple[int, int], with_confidence: bool) -> Tensor:
        """Return train ids of each network, uint8 [N,M,H,W]; with `soft` [N,M+1,H,W].

        Args:
            images: uint8 [N,3,h,w] RGB, on any device.
            size: H, W of the result.
            with_confidence: must be left out; a vote has an agreement instead.
        """
        assert not with_confidence
        members = self.ensemble.predictors
        if not self.soft:
            return torch.stack([member(images, size) for member in members], 1)
        probs = [member.probabilities(images) for member in members]
        corners = self.ensemble.align_corners
        logits = [*map(log_probs, probs), self.ensemble.mean(probs)]
        return torch.stack([kernels.argmax_upsample(x, size, corners) for x in logits], 1)


class Agreement:
    """Count where the members of a vote, and the vote itself, name the same id.

    `images` is how many have been counted.

    Args:
        num_members: M.
    """

    def __init__(self, num_members: int) -> None:
        self._same = np.zeros((num_members + 1, num_members + 1), np.int64)  # the vote is the last
        self._pixels = self.images = 0

    def update(self, ballots: Tensor, vote: Tensor) -> None:
        """Add an image.

        Args:
            ballots: uint8 [M,...] ids on the CPU; 255, no class, agrees with 255 only.
            vote: uint8 [...].
        """
        maps = [*ballots.numpy(), vote.numpy()]
        for i, one in enumerate(maps):
            for j, other in enumerate(maps[:i]):
                self._same[i, j] += np.count_nonzero(one == other)
        self._pixels += vote.numel()
        self.images += 1

    def add_up_processes(self) -> None:
        """Add the counts of all processes, of which each saw other images."""
        own = torch.tensor([*self._same.flatten(), self._pixels, self.images])
        *same, self._pixels, self.images = processes.add_up(own).tolist()
        self._same = np.reshape(same, self._same.shape)

    def shares(self) -> np.ndarray:
        """Return float64 [M+1,M+1], percent of the pixels on which two agree; the vote is last."""
        lower = 100 * self._same / self._pixels
        return lower + lower.T + 100 * np.eye(len(lower))

    def lines(self, names: list[str]) -> list[str]:
        """Return a table: each member beside the vote and beside every other member.

        Args:
            names: of the M members.
        """
        shares = self.shares()
        rows = [["vote", *(str(i + 1) for i in range(len(names)))]]
        for i in range(len(names)):
            between = ("-" if i == j else f"{shares[i, j]:.2f}" for j in range(len(names)))
            rows.append([f"{shares[i, -1]:.2f}", *between])
        cells = [" ".join(f"{cell:>6}" for cell in row) for row in rows]
        labels = ["% same", *(f"{i}" for i in range(1, len(names) + 1))]
        return [
            f"{label:>6} {line}  {name}".rstrip()
            for label, line, name in zip(labels, cells, ["", *names], strict=True)
        ]


def agreeing_share(ballots: Tensor, vote: Tensor, weights: list[float] | None) -> np.ndarray:
    """Return the share of the votes that the winner got, uint8 [...], 255 for all of them.

    Args:
        ballots: uint8 [M,...] on the CPU.
        vote: uint8 [...].
        weights: M, or None for one vote each.
    """
    weights = np.ones(len(ballots)) if weights is None else np.array(weights)
    same = ballots.numpy() == vote.numpy()
    return np.rint(255 * np.tensordot(weights / weights.sum(), same, 1)).astype(np.uint8)


def score_votes(
    groups: list[list[int]],
    images: Iterable[tuple[Tensor, Tensor]],
    class_names: list[str],
    weights: list[float] | None,
) -> list[float]:
    """Return the mIoU, 0..100, of the vote of each group of members, in one pass.

    Args:
        groups: members of each, by their numbers.
        images: pairs of ballots uint8 [M,...] of every member, 255 for none, and truth uint8 [...].
        class_names: of the C classes.
        weights: M, or None for one vote each.

    Raises:
        UserError: no pixel has a true class, or a truth is outside the classes.
    """
    num_classes = len(class_names)
    scores = [ConfusionMatrix(num_classes, class_names, allow_void=True) for _ in groups]
    for ballots, truth in images:
        for group, confusion in zip(groups, scores, strict=True):
            votes = weights and [weights[member] for member in group]
            confusion.update(kernels.hard_vote(ballots[group], num_classes, votes), truth)
    return [confusion.compute()["miou"] for confusion in scores]


def grow(
    num_members: int, score: Callable[[list[list[int]]], list[float]]
) -> list[tuple[list[int], float]]:
    """Return groups of 1, 2, ... all members, each the last and the member that raises it most.

    The best of the groups is the selection: see `best_group`. The first of equal members is taken.

    Args:
        num_members: M.
        score: returns a number for each group of members.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models, section 2.
    Deviations: without replacement, without bagging, and votes in place of averaged
    probabilities. As theirs, it does not stop where the score falls: two members vote worse than
    the better of them (every difference is a tie, which goes to the lower class), three may win.
    """
    path: list[tuple[list[int], float]] = []
    chosen: list[int] = []
    while len(chosen) < num_members:
        groups = [[*chosen, member] for member in range(num_members) if member not in chosen]
        scores = score(groups)
        chosen = groups[int(np.argmax(scores))]
        path.append((chosen, max(scores)))
    return path


def best_group(path: list[tuple[list[int], float]]) -> list[int]:
    """Return the group of the highest score, the smallest of equals, in the members' order."""
    return sorted(max(path, key=lambda step: step[1])[0])


def select(
    names: list[str],
    weights: list[float] | None,
    class_names: list[str],
    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]],
) -> list[int]:
    """Print how the mIoU of the vote grows with its members, and return those of the best vote.

    Args:
        names: of the M members.
        weights: M, or None for one vote each.
        class_names: of the C classes.
        labelled: starts a pass over the images; see `score_votes`.
    """
    path = grow(len(names), lambda groups: score_votes(groups, labelled(), class_names, weights))
    for group, score in path:
        print(f"{len(group):4} members  mIoU {score:6.2f}  + {names[group[-1]]}")
    chosen = best_group(path)
    shown = " ".join(names[member] for member in chosen)
    print(f"selected {len(chosen)} of {len(names)}: {shown}", flush=True)
    return chosen
