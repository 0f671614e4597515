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


def gaussian_derivatives(sigma: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sampled Gaussian and its first and second derivative, each (2 r + 1,) with r = ceil(3 sigma).

    The kernels are corrected so that they answer exactly 1, x and x**2 / 2 to those polynomials: plain sampling of
    a narrow Gaussian answers to a constant, and every change of illumination would look like a ridge.
    """
    radius = math.ceil(3.0 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    smooth = torch.exp(-0.5 * (x / sigma) ** 2)
    smooth = smooth / smooth.sum()
    first = -x * smooth
    first = first / (first * -x).sum()
    second = (x**2 / sigma**2 - 1.0) * smooth
    second = second - second.mean()
    second = second * 2.0 / (second * x**2).sum()
    return smooth.float(), first.float(), second.float()


class RidgeStem(nn.Module):
    """Ridge strength at several scales, normalised by its local mean.

    Per scale: ``|dominant eigenvalue| - 0.5 |other eigenvalue|`` of the Hessian, negative values cut: lines answer,
    spots answer half, flat noise little. Divided by its own mean over a window, so a faint angiogram and a crisp
    one give maps of the same strength, then squeezed into [0, 1).

    Args:
        sigmas: standard deviations of the Gaussians, pixels; about half a vessel's width each.
        window_px: side of the square over which the strength is averaged.
        floor: strength (in grey levels of a [0, 1] image) below which a flat region stays dark.
    """

    def __init__(self, sigmas: Sequence[float] = (1.4, 2.8), window_px: int = 49, floor: float = 1e-3) -> None:
        super().__init__()
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        self.window_px = int(window_px)
        self.floor = float(floor)
        self.out_channels = len(self.sigmas)
        for index, sigma in enumerate(self.sigmas):
            for name, kernel in zip(("smooth", "first", "second"), gaussian_derivatives(sigma), strict=True):
                # Not saved: they follow from the sigmas, which the checkpoint's config holds.
                self.register_buffer(f"{name}{index}", kernel, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [0, 1] to (B, number of sigmas, H, W) in [0, 1)."""
        # Second derivatives of an 8-bit image do not survive half precision.
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            return torch.cat([self._ridge(image, index) for index in range(len(self.sigmas))], dim=1)

    def _ridge(self, image: torch.Tensor, index: int) -> torch.Tensor:
        smooth, first, second = (getattr(self, f"{name}{index}") for name in ("smooth", "first", "second"))
        radius = (len(smooth) - 1) // 2
        padded = F.pad(image, [radius] * 4, mode="replicate")
        # One pass along y gives three intermediate maps, one pass along x finishes them.
        along_y = F.conv2d(padded, torch.stack([smooth, first, second])[:, None, :, None])
        xx = F.conv2d(along_y[:, :1], second[None, None, None])
        xy = F.conv2d(along_y[:, 1:2], first[None, None, None])
        yy = F.conv2d(along_y[:, 2:], smooth[None, None, None])
        half_trace = 0.5 * (xx + yy).abs()
        root = torch.sqrt((0.5 * (xx - yy)) ** 2 + xy**2 + 1e-14)
        dominant, other = half_trace + root, (half_trace - root).abs()
        strength = self.sigmas[index] ** 2 * (dominant - 0.5 * other).clamp_min(0.0)
        # The mean varies slowly, so a quarter of the resolution is plenty; the full one costs more than the network.
        coarse = F.avg_pool2d(strength, 4, ceil_mode=True, count_include_pad=False)
        window = 2 * (self.window_px // 8) + 1
        for size in ((window, 1), (1, window)):
            coarse = F.avg_pool2d(coarse, size, stride=1, padding=(size[0] // 2, size[1] // 2), count_include_pad=False)
        mean = F.interpolate(coarse, size=strength.shape[-2:], mode="bilinear", align_corners=False)
        ratio = strength / (mean + self.floor)
        return ratio / (1.0 + ratio)
