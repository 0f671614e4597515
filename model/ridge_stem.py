"""A fixed stem without parameters that maps vessels of every modality to similar values.

A vessel is an intensity ridge: dark in CF and OCT, bright in FA and OCTA. Eigenvalues of the
Hessian measure ridges (Frangi et al., "Multiscale Vessel Enhancement Filtering", MICCAI 1998).
Their absolute value does not depend on the sign of the contrast, so a network on ridge strength
needs not learn invariance to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def gaussian_kernel(sigma: float) -> torch.Tensor:
    """Sampled Gaussian of sum 1: (2 r + 1,) float32 with r = ceil(3 sigma), sigma in pixels."""
    radius = math.ceil(3.0 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return (kernel / kernel.sum()).float()


def smooth_along(image: torch.Tensor, kernel: torch.Tensor, dim: int) -> torch.Tensor:
    """Convolve with a symmetric kernel along one dimension, without padding.

    A sum of shifted views, because one-channel convolutions are slow on a CPU (25 times slower at
    batch size 8, measured).

    Args:
        image: (..., N, ...) float32, N along ``dim``.
        kernel: (2 r + 1,) float32.
        dim: dimension that is smoothed.

    Returns:
        (..., N - 2 r, ...) float32.
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

    Per scale: ``|dominant eigenvalue| - 0.5 |other eigenvalue|`` of the Hessian, clipped at 0. A
    line keeps its full strength, a spot half of it, noise in flat regions little. Divided by its
    mean over a window, so that the result does not depend on the contrast of the image: 0.4 on
    average, clipped at 2 (five times the mean).

    Args:
        sigmas: standard deviations of the Gaussians, pixels; about half a vessel's width each.
        window_px: side of the square over which the strength is averaged, pixels.
        floor: added to the mean, in grey levels of an image in [0, 1]; suppresses noise in regions
            without ridges.
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
            # Not saved: computed from the sigmas, which are in the settings of a checkpoint.
            self.register_buffer(f"gaussian{index}", gaussian_kernel(sigma), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [0, 1] to (B, number of sigmas, H, W) float32 in [0, 2]."""
        # Half precision is too coarse for second derivatives of an 8-bit image.
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            return torch.cat(
                [self._ridge(image, index) for index in range(len(self.sigmas))], dim=1
            )

    def _ridge(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Normalised ridge strength (B, 1, H, W) at the scale of this index."""
        kernel = getattr(self, f"gaussian{index}")
        radius = (len(kernel) - 1) // 2 + 1
        padded = F.pad(image, [radius] * 4, mode="replicate")
        smooth = smooth_along(smooth_along(padded, kernel, 2), kernel, 3)
        # Central differences of the smoothed image: at these sigmas within a few percent of
        # Gaussian derivatives, at a third of their cost, and zero on constant or linear intensity.
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
        return (0.4 * strength / (self._local_mean(strength) + self.floor)).clamp_max(2.0)

    def _local_mean(self, strength: torch.Tensor) -> torch.Tensor:
        """Mean of (B, 1, H, W) over the window, computed at a quarter of the resolution.

        The mean varies slowly; at full resolution it would cost more than the network.
        """
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
        return F.interpolate(coarse, size=strength.shape[-2:], mode="bilinear", align_corners=False)
