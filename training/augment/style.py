"""The other domain's style: colours and low frequencies of the target's images; labels stay."""

import math
from typing import Annotated

import torch
from torch import Tensor

from engine.parsing import span
from training.augment.row import Range, Row, each, uniform


def choose(n: int, references: Tensor) -> Tensor:
    """Return a reference for each of n images, of float [M,3,h,w], drawn with replacement."""
    which = (torch.rand(n) * len(references)).long()
    return references[which.to(references.device, non_blocking=True)]


def waves(length: int, most: int, device: torch.device) -> Tensor:
    """Return the Fourier transform's rows of frequencies -most to most, complex [2 most + 1, L]."""
    frequency = torch.arange(-most, most + 1, dtype=torch.float64, device=device).view(-1, 1)
    place = torch.arange(length, dtype=torch.float64, device=device)
    angle = frequency * place * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def spectrum(images: Tensor, most: int) -> Tensor:
    """Return the mean wave of each frequency up to `most` either way, complex [N,3,k,k]."""
    _, _, height, width = images.shape
    rows, columns = waves(height, most, images.device), waves(width, most, images.device)
    # first along x: real images by a thin matrix
    along = torch.complex(images @ columns.real.T, images @ columns.imag.T)
    return rows @ along / (height * width)


def fda(
    images: Tensor,
    references: Tensor,
    *,
    beta: Annotated[Range, span(0, 0.5), "half the window, as a share of the shorter side"] = (
        0.01,
        0.01,
    ),
) -> Tensor:
    """Give the lowest frequencies the amplitudes of a target image, and keep their phases.

    Source: Yang and Soatto 2020 (FDA), equations 2 to 4. The few frequencies are computed by
    themselves, as differences, instead of all of them.
    """
    n, _, height, width = images.shape
    # as FDA's code: the window goes from -b to b, b being whole
    most = math.floor(min(height, width) * float(uniform(1, beta)))
    own, other = spectrum(images, most), spectrum(choose(n, references), most)
    size = own.abs()
    phase = torch.where(size > 0, own / size.clamp(min=1e-12), torch.ones_like(own))
    more = phase * (other.abs() - size)
    rows, columns = waves(height, most, images.device), waves(width, most, images.device)
    along = rows.conj().T @ more  # [N,3,H,k]
    changed = along.real @ columns.real + along.imag @ columns.imag
    return (images + changed).clamp_(0, 255)


# sRGB's primaries under D65, divided by the white point (IEC 61966-2-1)
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227))  # fmt: skip
WHITE = (0.950456, 1.0, 1.088754)
BEND = 0.008856


def to_lab(images: Tensor) -> Tensor:
    """Turn RGB, 0 to 255, into CIE L*a*b*: L 0 to 100."""
    levels = images / 255
    levels = torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055).pow(2.4))
    matrix = images.new_tensor(TO_XYZ) / images.new_tensor(WHITE).view(3, 1)
    xyz = torch.einsum("ij,njhw->nihw", matrix, levels)
    root = torch.where(xyz > BEND, xyz.clamp(min=BEND).pow(1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def from_lab(lab: Tensor) -> Tensor:
    """Turn CIE L*a*b* into RGB, 0 to 255."""
    light, a, b = lab.unbind(1)
    y = (light + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(root > BEND ** (1 / 3), root.clamp(min=0).pow(3), (root - 16 / 116) / 7.787)
    matrix = lab.new_tensor(TO_XYZ) / lab.new_tensor(WHITE).view(3, 1)
    levels = torch.einsum("ij,njhw->nihw", torch.linalg.inv(matrix), xyz).clamp_(0, 1)
    curve = 1.055 * levels.clamp(min=1e-8).pow(1 / 2.4) - 0.055
    return torch.where(levels <= 0.0031308, 12.92 * levels, curve) * 255


def lab(
    images: Tensor,
    references: Tensor,
    *,
    strength: Annotated[Range, span(0, 1), "share of the way to the target's"] = (1.0, 1.0),
) -> Tensor:
    """Give L, a and b the mean and deviation of a target image (Reinhard et al. 2001)."""
    own, other = to_lab(images), to_lab(choose(len(images), references))
    (mean, deviation), (new_mean, new_deviation) = (
        (x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)) for x in (own, other)
    )
    changed = (own - mean) * (new_deviation / deviation.clamp(min=1e-6)) + new_mean
    return from_lab(own + (changed - own) * each(uniform(len(images), strength), images))


AUGMENTATIONS = {
    "fda": Row(
        "style",
        fda,
        "FDA",
        "one window a batch; of the target, a few images",
    ),
    "lab": Row(
        "style",
        lab,
        "LAB statistics (Reinhard et al.)",
        "CIE L*a*b* for their l alpha beta; of the target, a few images",
        still={"strength": (0, 0)},
    ),
}
