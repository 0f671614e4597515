"""A fixed, parameter-free stem that makes vessels look alike in every modality.

A vessel is a ridge: dark in CF and OCT, bright in FA and OCTA. The eigenvalues of the Hessian measure ridges, and their
absolute value forgets the sign (after Frangi et al., MICCAI 1998), so a network that sees ridge strength instead of
intensity has nothing to unlearn between modalities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def gaussian_kernel(sigma: float) -> torch.Tensor:
    """Sampled Gaussian of sum 1: (2 r + 1,) float32 with r = ceil(3 sigma)."""
    radius = math.ceil(3.0 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return (kernel / kernel.sum()).float()


def smooth_along(image: torch.Tensor, kernel: torch.Tensor, dim: int) -> torch.Tensor:
    """Convolve with a symmetric kernel along one dimension; no padding, so that dimension shrinks.

    As a sum of shifted views: convolutions of one channel are so slow on a CPU (25 times, at batch 8) that this stem
    would cost more than the network behind it.
    """
    radius = (len(kernel) - 1) // 2
    length = image.shape[dim] - 2 * radius
    result = image.narrow(dim, radius, length) * kernel[radius]
    for offset in range(radius):
        pair = image.narrow(dim, offset, length) + image.narrow(dim, 2 * radius - offset, length)
        result = result + pair * kernel[offset]
    return result


class RidgeStem(nn.Module):
    """Ridge strength at several scales, normalised by its local mean.

    Per scale: ``|dominant eigenvalue| - 0.5 |other eigenvalue|`` of the Hessian, negative values cut: lines answer,
    spots answer half, flat noise little. Divided by its own mean over a window, so a faint angiogram and a crisp
    one give maps of the same strength: 0.4 on average, cut at 2 (five times the mean).

    Args:
        sigmas: standard deviations of the Gaussians, pixels; about half a vessel's width each.
        window_px: side of the square over which the strength is averaged.
        floor: strength (in grey levels of a [0, 1] image) below which a flat region stays dark.
    """

    def __init__(
        self, sigmas: Sequence[float] = (1.3, 2.2, 3.6), window_px: int = 49, floor: float = 1e-3
    ) -> None:
        super().__init__()
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        self.window_px = int(window_px)
        self.floor = float(floor)
        self.out_channels = len(self.sigmas)
        for index, sigma in enumerate(self.sigmas):
            # Not saved: it follows from the sigmas, which the checkpoint holds.
            self.register_buffer(f"gaussian{index}", gaussian_kernel(sigma), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [0, 1] to (B, number of sigmas, H, W) in [0, 2]."""
        # Second derivatives of an 8-bit image do not survive half precision.
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            return torch.cat(
                [self._ridge(image, index) for index in range(len(self.sigmas))], dim=1
            )

    def _ridge(self, image: torch.Tensor, index: int) -> torch.Tensor:
        kernel = getattr(self, f"gaussian{index}")
        radius = (len(kernel) - 1) // 2 + 1
        padded = F.pad(image, [radius] * 4, mode="replicate")
        smooth = smooth_along(smooth_along(padded, kernel, 2), kernel, 3)
        # Central differences of the smoothed image: at these sigmas they equal Gaussian derivatives to a few percent, at
        # a third of the cost, and answer exactly nothing to even light or a linear ramp.
        centre = smooth[..., 1:-1, 1:-1]
        xx = smooth[..., 1:-1, 2:] + smooth[..., 1:-1, :-2] - 2.0 * centre
        yy = smooth[..., 2:, 1:-1] + smooth[..., :-2, 1:-1] - 2.0 * centre
        xy = 0.25 * (
            smooth[..., 2:, 2:]
            + smooth[..., :-2, :-2]
            - smooth[..., 2:, :-2]
            - smooth[..., :-2, 2:]
        )
        half_trace = 0.5 * (xx + yy).abs()
        root = torch.sqrt((0.5 * (xx - yy)) ** 2 + xy**2 + 1e-14)
        dominant, other = half_trace + root, (half_trace - root).abs()
        strength = self.sigmas[index] ** 2 * (dominant - 0.5 * other).clamp_min(0.0)
        # The mean varies slowly, so a quarter of the resolution is plenty; the full one costs more than the network.
        coarse = F.avg_pool2d(strength, 4, ceil_mode=True, count_include_pad=False)
        window = 2 * (self.window_px // 8) + 1
        for size in ((window, 1), (1, window)):
            coarse = F.avg_pool2d(
                coarse,
                size,
                stride=1,
                padding=(size[0] // 2, size[1] // 2),
                count_include_pad=False,
            )
        mean = F.interpolate(coarse, size=strength.shape[-2:], mode="bilinear", align_corners=False)
        return (0.4 * strength / (mean + self.floor)).clamp_max(2.0)
