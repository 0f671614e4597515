"""Vessel-like ridges that two aligned images of one retina both show: the mask of real samples.

Ridges are found by the filter of Sato et al. (Medical Image Analysis 1998), scikit-image's
``sato``, in the polarity of the vessels: dark in photographs, bright in angiograms. A top-hat
transform keeps out the edges of the optic disc, of large bleedings and of the field of view.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.filters import apply_hysteresis_threshold, sato

from geometry.field_of_view import erode_field


@dataclass(frozen=True)
class RidgeLabelConstants:
    """Constants of the ridge mask for images of 512 px; chosen by hand."""

    sigmas_px: tuple[float, ...] = (1.5, 2.5)  # scales of the filter: vessels of 3 to 8 px
    normalise_px: float = 24.0  # standard deviation of the window of local mean and deviation
    min_deviation: float = 0.01  # grey levels in [0, 1]; flat regions are not amplified beyond it
    smooth_px: float = 1.0  # Gaussian before the top-hat transform, against noise
    widest_px: int = 15  # diameter of its structuring element; wider structures are no vessels
    clip_deviations: float = 0.5  # of the other polarity than the vessels, from the local mean
    margin_px: int = 12  # border of the fields of view that is left out
    displacement_px: int = 3  # the ridges of the moving image may lie this far off
    high_share: float = 0.04  # of the inner overlap: seeds of the ridges
    low_share: float = 0.08  # of the inner overlap: the most that the ridges cover
    min_strength: float = 0.2  # least strength of a ridge, standard deviations of the image
    min_length_px: int = 30  # diagonal of the bounding box; shorter pieces are speckle


RIDGE_LABELS = RidgeLabelConstants()


def find_ridges(fixed: np.ndarray, moving: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Ridges that both images show.

    The strength of a ridge is the geometric mean of its strength in the fixed image and the
    largest strength nearby in the moving image, so the ridges lie where the fixed image has them.

    Args:
        fixed, moving: (H, W) float32 in [0, 1], aligned; may be the same image.
        overlap: (H, W) bool, where both images show retina.

    Returns:
        (H, W) bool, at most 8 % of the overlap; False near its border.
    """
    inner = erode_field(overlap, RIDGE_LABELS.margin_px)
    if not inner.any():
        return np.zeros(overlap.shape, dtype=bool)
    first = _ridge_strength(fixed, overlap, inner)
    second = first if moving is fixed else _ridge_strength(moving, overlap, inner)
    nearby = first if moving is fixed else cv2.dilate(second, _disc(RIDGE_LABELS.displacement_px))
    both = np.where(inner, np.sqrt(first * nearby), 0.0)
    high, low = np.quantile(
        both[inner], [1.0 - RIDGE_LABELS.high_share, 1.0 - RIDGE_LABELS.low_share]
    )
    low, high = max(low, RIDGE_LABELS.min_strength), max(high, RIDGE_LABELS.min_strength)
    return _without_short_pieces(apply_hysteresis_threshold(both, low, high))


def _ridge_strength(image: np.ndarray, field: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Strength of the ridges of the vessels' polarity.

    Args:
        image: (H, W) float32 in [0, 1].
        field: (H, W) bool, where it shows retina.
        inner: (H, W) bool, the field without its border; the polarity is judged there.

    Returns:
        (H, W) float32, at least 0; local standard deviations of the image.
    """
    normal = _normalise(image, field)
    # Vessels stand out more than noise, so the squares are larger in their polarity.
    dark, bright = (float((_hat(each)[inner] ** 2).mean()) for each in (-normal, normal))
    vessels = -normal if dark >= bright else normal  # bright ridges
    # Exudates are cut down to the background, so that the gaps between them are no ridges.
    vessels = np.maximum(vessels, -RIDGE_LABELS.clip_deviations)
    ridges = sato(vessels, sigmas=RIDGE_LABELS.sigmas_px, black_ridges=False)
    return np.sqrt(np.maximum(ridges * _hat(vessels), 0.0)).astype(np.float32)


def _hat(normal: np.ndarray) -> np.ndarray:
    """What rises above its surroundings and is narrow; (H, W) float32 to the same."""
    smooth = cv2.GaussianBlur(normal, (0, 0), RIDGE_LABELS.smooth_px)
    return cv2.morphologyEx(smooth, cv2.MORPH_TOPHAT, _disc(RIDGE_LABELS.widest_px // 2))


def _normalise(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Subtract the local mean, divide by the local deviation; (H, W) float32, 0 outside."""
    weight = field.astype(np.float32)

    def local_mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values * weight, (0, 0), RIDGE_LABELS.normalise_px) / share

    share = np.maximum(cv2.GaussianBlur(weight, (0, 0), RIDGE_LABELS.normalise_px), 1e-6)
    gap = image.astype(np.float32) - local_mean(image.astype(np.float32))
    deviation = np.sqrt(local_mean(gap**2) + RIDGE_LABELS.min_deviation**2)
    return (weight * gap / deviation).astype(np.float32)


def _disc(radius_px: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))


def _without_short_pieces(mask: np.ndarray) -> np.ndarray:
    """The connected pieces of a mask (H, W) bool that are long enough."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    sides = statistics[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    long = np.hypot(*sides.T) >= RIDGE_LABELS.min_length_px
    long[0] = False
    return long[labels]
