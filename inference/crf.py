"""The fully connected CRF: predictions that follow the edges of the image.

Kraehenbuehl and Koltun 2011 (Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials). Every pixel is a neighbour of every other; one step of mean field passes messages with
two Gaussian kernels: of position (smoothness), and of position and colour (appearance).
"""

import itertools
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parsing import at_least
from engine.words import Count, Weight, bind
from inference.predictor import Predictor
from models.outputs import resize

Width = Annotated[float, at_least(0.1, float)]

MOST_COLOURS = 4096  # nodes of the colour lattice
MOST_WORK = 1e9  # nodes of the colour lattice, squared, times those of space
FINENESS = (4, 3, 2, 1)  # nodes a standard deviation, where not every value has one


class DenseCrf:
    """Refine predictions by mean field in a fully connected CRF with Potts compatibility.

    Args:
        iterations: of mean field.
        smooth, smooth_xy: weight of the smoothness kernel, its standard deviation in pixels.
        look, look_xy, look_rgb: of the appearance kernel, the last in levels of 0 to 255.

    Source: equations 3, 6 and algorithm 1, with the values of the authors' example. Kernels are
    normalised on both sides and hold the pixel itself, as in their code. Deviation: the appearance
    kernel is not filtered on a permutohedral lattice but between the nodes of two grids, of colours
    that occur and of space, to which pixels are joined linearly; where there are few enough colours
    or pixels, each is its own node and nothing is approximated.
    """

    def __init__(
        self,
        *,
        iterations: Annotated[Count, "of mean field"] = 5,
        smooth: Annotated[Weight, "weight of the smoothness kernel"] = 3.0,
        smooth_xy: Annotated[Width, "its width, pixels"] = 3.0,
        look: Annotated[Weight, "weight of the appearance kernel"] = 10.0,
        look_xy: Annotated[Width, "its width, pixels"] = 80.0,
        look_rgb: Annotated[Width, "its width, levels of 0 to 255"] = 13.0,
    ):
        self.iterations = iterations
        self.smooth, self.smooth_xy = smooth, smooth_xy
        self.look, self.look_xy, self.look_rgb = look, look_xy, look_rgb

    @torch.inference_mode()
    def __call__(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return log-probabilities, float32 [N,C,H,W].

        Args:
            logits: float [N,C,H,W], the unary term.
            images: uint8 [N,3,H,W] RGB, on the same device.
        """
        pairs = zip(logits.float().log_softmax(1), images, strict=True)
        return torch.stack([self._refine(unary, image) for unary, image in pairs])

    def _refine(self, unary: Tensor, image: Tensor) -> Tensor:
        kernels = [
            (self.smooth, Smoothness(unary.shape[1:], self.smooth_xy, unary.device)),
            (self.look, Appearance(image, self.look_xy, self.look_rgb)),
        ]
        ones = unary.new_ones(1, *unary.shape[1:])
        kernels = [(w, k, k(ones).clamp(min=1e-20).rsqrt()) for w, k in kernels if w]
        refined = unary
        for _ in range(self.iterations):
            q = refined.softmax(0)
            # same labels save what is paid between others: Potts
            messages = (weight * norm * kernel(norm * q) for weight, kernel, norm in kernels)
            refined = (unary + sum(messages)).log_softmax(0)
        return refined


class Smoothness:
    """The Gaussian kernel of position, exactly.

    Args:
        size: H, W.
        width: standard deviation in pixels.
        device: of what is filtered.
    """

    def __init__(self, size: tuple[int, int], width: float, device: torch.device):
        self.rows, self.columns = (
            _gaussian(torch.arange(side, device=device)[:, None], width) for side in size
        )

    def __call__(self, maps: Tensor) -> Tensor:
        """Filter float [C,H,W]."""
        return self.rows @ maps @ self.columns


class Appearance:
    """The Gaussian kernel of position and colour, between the nodes of two grids.

    The colours that occur have the nodes of their cells, linearly weighted, and so have positions;
    the kernel between nodes is exact, narrower by the spread that two linear weightings have.

    Args:
        image: uint8 [3,H,W].
        width_xy, width_rgb: standard deviations, in pixels and in levels.

    Attributes:
        spacing_xy, spacing_rgb: of the grids; 1 is exact.
    """

    def __init__(self, image: Tensor, width_xy: float, width_rgb: float):
        (h, w), colours = image.shape[1:], image.flatten(1).T.float()  # [P,3]
        for self.spacing_rgb in _spacings(width_rgb):
            nodes, keys, weights = _colour_nodes(colours, self.spacing_rgb)
            if len(nodes) <= MOST_COLOURS:
                break
        y, x = torch.arange(h, device=image.device), torch.arange(w, device=image.device)
        for self.spacing_xy in _spacings(width_xy):
            (row, in_row), (column, in_column) = (_taps(a, self.spacing_xy) for a in (y, x))
            self.cells = int(row[-1]) + 1, int(column[-1]) + 1  # ny, nx
            if len(nodes) ** 2 * self.cells[0] * self.cells[1] <= MOST_WORK:
                break
        self.taps = in_row.shape[1]
        share = in_row[:, None, :, None] * in_column[None, :, None, :]
        self.share = share.reshape(h * w, -1).T[..., None].contiguous()  # [k*k,P,1]
        # pixels -> (colour node, cell of space), and the same sorted by the latter
        cell = (row[:, None] * self.cells[1] + column).flatten()
        self.places = (keys * self.cells[0] * self.cells[1] + cell[:, None]).int()
        self.weights = weights
        order = self.places.flatten().argsort()
        self.sorted_weights = weights.flatten()[order]
        self.pixels = order.div_(keys.shape[1], rounding_mode="floor").int()
        counts = self.places.flatten().bincount(
            minlength=len(nodes) * self.cells[0] * self.cells[1]
        )
        self.starts = (counts.cumsum(0) - counts).int()
        self.colour_kernel = _gaussian(nodes, width_rgb, self.spacing_rgb)
        self.space_kernels = [
            _gaussian(
                torch.arange(n + self.taps - 1, device=image.device)[:, None] * self.spacing_xy,
                width_xy,
                self.spacing_xy,
            )
            for n in self.cells
        ]

    def __call__(self, maps: Tensor) -> Tensor:
        """Filter float [C,H,W]."""
        (ny, nx), k = self.cells, self.taps
        corners = list(enumerate(itertools.product(range(k), repeat=2)))
        pixels = maps.flatten(1).T  # [P,C]
        nodes = maps.new_zeros(len(self.colour_kernel), ny + k - 1, nx + k - 1, len(maps))
        how = {"mode": "sum", "per_sample_weights": self.sorted_weights}
        for index, (a, b) in corners:
            part = F.embedding_bag(self.pixels, self.share[index] * pixels, self.starts, **how)
            nodes[:, a : a + ny, b : b + nx] += part.view(-1, ny, nx, len(maps))
        nodes = (self.colour_kernel @ nodes.flatten(1)).view_as(nodes)
        nodes = torch.einsum("vyxc,ay,bx->vabc", nodes, *self.space_kernels)
        how = {"mode": "sum", "per_sample_weights": self.weights}
        result = torch.zeros_like(pixels)
        for index, (a, b) in corners:
            part = nodes[:, a : a + ny, b : b + nx].reshape(-1, len(maps))
            result += self.share[index] * F.embedding_bag(self.places, part, **how)
        return result.T.reshape(maps.shape)


def _spacings(width: float) -> list[float]:
    """Return the spacings of a grid to try, the finest first: a node a value is exact."""
    return [1.0, *(width / n for n in FINENESS if width / n > 1)]


def _taps(values: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Return the node below each value, int64 [...], and the weights of it and the next [...,k]."""
    if spacing == 1:
        return values.long(), torch.ones_like(values, dtype=torch.float32)[..., None]
    place = values / spacing
    above = place - place.floor()
    return place.long(), torch.stack([1 - above, above], -1)


def _colour_nodes(colours: Tensor, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nodes that colours have, and which of them are each colour's.

    Args:
        colours: float [P,3], 0 to 255.
        spacing: of the grid.

    Returns:
        float [V,3] in levels, their indices int64 [P,K] and weights float [P,K].
    """
    below, near = _taps(colours, spacing)
    side, k = int(255 / spacing) + 2, near.shape[-1]
    keys, weights = [], []
    for r, g, b in itertools.product(range(k), repeat=3):
        keys.append(((below[:, 0] + r) * side + below[:, 1] + g) * side + below[:, 2] + b)
        weights.append(near[:, 0, r] * near[:, 1, g] * near[:, 2, b])
    node, keys = torch.stack(keys, 1).unique(return_inverse=True)
    levels = torch.stack([node // side**2, node // side % side, node % side], 1) * spacing
    return levels, keys, torch.stack(weights, 1)


def _gaussian(nodes: Tensor, width: float, spacing: float = 1.0) -> Tensor:
    """Return the Gaussian kernel between nodes [V,D], float32 [V,V].

    Linear weights between nodes spread a point by spacing ** 2 / 6, on average, on either side: the
    kernel is narrower by both, and higher by as much as keeps its sum.
    """
    own = (width**2 - (spacing**2 / 3 if spacing != 1 else 0)) ** 0.5
    scaled = nodes.float() / own
    kernel = scaled.new_zeros(len(nodes), len(nodes))
    for part in scaled.T:  # the differences themselves: cdist's products lose digits
        kernel -= (part[:, None] - part).square_()
    return kernel.div_(2).exp_().mul_((width / own) ** nodes.shape[1])


def refine(predictor: Predictor, words: list[str] | None) -> "Predictor | Refined":
    """Return the predictor refined as the words of --crf say, `iterations=10 look=4`; None: as is.

    Raises:
        UserError: a key or value that does not exist; says which do.
    """
    if words is None:
        return predictor
    given = (word.partition("=")[::2] for word in words)
    return Refined(predictor, DenseCrf(**bind("crf", DenseCrf, given)))


class Refined:
    """A predictor whose predictions a CRF refines at the size in which the network sees images.

    Args:
        predictor: see `Predictor`.
        crf: see above.
    """

    def __init__(self, predictor: Predictor, crf: DenseCrf):
        self.predictor, self.crf, self.device = predictor, crf, predictor.device
        self.align_corners, self.precision = predictor.align_corners, predictor.precision
        self.temperature = predictor.temperature

    __call__ = Predictor.__call__

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N,C,H,W] of images, uint8 [N,3,H,W] RGB, on any device."""
        images = images.to(self.device, non_blocking=True)
        logits = resize(self.predictor.logits(images), images.shape[-2:], self.align_corners)
        return self.crf(logits, images)
