"""Vessel-like ridges that two aligned images of one retina both show: the mask of real samples.

Ridges are found by the filter of Sato et al. (Medical Image Analysis 1998), scikit-image's
``sato``, in either polarity: vessels are dark in photographs and bright in angiograms.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import binary_erosion
from skimage.filters import apply_hysteresis_threshold, sato
from skimage.morphology import remove_small_objects


@dataclass(frozen=True)
class RidgeLabelConstants:
    """Constants of the ridge mask for images of 512 px; chosen by hand."""

    sigmas_px: tuple[float, ...] = (1.5, 2.5)  # scales of the filter: vessels of 3 to 8 px
    normalise_px: float = 24.0  # standard deviation of the window of local mean and deviation
    min_deviation: float = 0.01  # grey levels in [0, 1]; flat regions are not amplified beyond it
    margin_px: int = 12  # border of the fields of view that is left out: their edge is a ridge
    tolerance_px: int = 3  # the ridges of the moving image may lie this far off
    high_share: float = 0.04  # of the overlap: seeds of the ridges
    low_share: float = 0.08  # of the overlap: the most that the ridges cover
    min_area_px: int = 40  # smaller pieces are speckle


RIDGE_LABELS = RidgeLabelConstants()


def find_ridges(fixed: np.ndarray, moving: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Ridges that both images show.

    Args:
        fixed, moving: (H, W) float32 in [0, 1], aligned; may be the same image.
        overlap: (H, W) bool, where both images show retina.

    Returns:
        (H, W) bool, at most 8 % of the overlap, at the places of the fixed image; False near the
        border of the overlap.
    """
    margin = np.ones((2 * RIDGE_LABELS.margin_px + 1,) * 2, dtype=bool)
    inner = binary_erosion(overlap, margin)
    if not inner.any():
        return np.zeros(overlap.shape, dtype=bool)
    own = _ridge_strength(fixed, overlap, inner)
    both = own
    if moving is not fixed:
        reach = np.ones((2 * RIDGE_LABELS.tolerance_px + 1,) * 2, np.uint8)
        both = np.minimum(own, cv2.dilate(_ridge_strength(moving, overlap, inner), reach))
    low, high = (
        float(np.quantile(both[inner], 1.0 - share))
        for share in (RIDGE_LABELS.low_share, RIDGE_LABELS.high_share)
    )
    ridges = inner & apply_hysteresis_threshold(both, max(low, 1e-6), max(high, 1e-6))
    return remove_small_objects(ridges, max_size=RIDGE_LABELS.min_area_px)


def _ridge_strength(image: np.ndarray, overlap: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Strength of the ridges (H, W) of the polarity that the image has, as a rank in [0, 1].

    Args:
        image: (H, W) float32 in [0, 1].
        overlap: (H, W) bool, where the image is retina.
        inner: (H, W) bool, inside of it, where ridges count.
    """
    even = _normalised(image, overlap)
    dark, bright = (
        np.asarray(sato(even, RIDGE_LABELS.sigmas_px, black_ridges=black), dtype=np.float32)
        for black in (True, False)
    )
    # Vessels are the longest ridges, so the polarity of the vessels has the stronger maxima.
    strength = max((dark, bright), key=lambda ridges: float(np.quantile(ridges[inner], 0.97)))
    ranks = np.zeros(image.shape, np.float32)
    ranks[inner] = np.argsort(np.argsort(strength[inner])) / max(int(inner.sum()) - 1, 1)
    return ranks


def _normalised(image: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """The image (H, W) with local mean 0 and deviation 1, measured inside of the overlap."""
    weight = overlap.astype(np.float32)

    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (0, 0), RIDGE_LABELS.normalise_px)

    total = np.maximum(smooth(weight), 1e-3)
    centred = (image - smooth(image * weight) / total) * weight
    deviation = np.sqrt(smooth(centred**2) / total)
    return centred / np.maximum(deviation, RIDGE_LABELS.min_deviation)
