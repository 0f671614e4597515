"""Junctions (bifurcations and crossings) of a vessel mask: the initial labels of the detector."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize


def find_junctions(mask: np.ndarray, merge_px: int = 3) -> np.ndarray:
    """Find branching points of the vessels' centre lines.

    Args:
        mask: (H, W) bool, True on vessels.
        merge_px: junction pixels nearer to each other than about twice this are one junction (the
            skeleton of a crossing has two), pixels.

    Returns:
        (N, 2) float32, (x, y) pixels.
    """
    # A ragged outline gives the skeleton short spurs, each of which would count as a junction.
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0) > 0.5
    skeleton = skeletonize(smooth)
    neighbours = (
        ndimage.convolve(skeleton.astype(np.uint8), np.ones((3, 3), np.uint8), mode="constant") - 1
    )
    branching = skeleton & (neighbours >= 3)
    if not branching.any():
        return np.zeros((0, 2), dtype=np.float32)
    near = ndimage.binary_dilation(branching, iterations=merge_px)
    labels, count = ndimage.label(near, structure=np.ones((3, 3)))
    centres = ndimage.center_of_mass(branching, labels, np.arange(1, count + 1))
    return np.asarray(centres, dtype=np.float32)[:, ::-1].copy()


def gaussian_heatmap(points: np.ndarray, size: tuple[int, int], sigma_px: float) -> np.ndarray:
    """Draw a Gaussian of height 1 at each point; where two overlap, take the maximum.

    Args:
        points: (N, 2), pixels (x, y), sub-pixel.
        size: (height, width) of the heatmap, pixels.
        sigma_px: standard deviation, pixels.

    Returns:
        (H, W) float32 in [0, 1].
    """
    heatmap = np.zeros(size, dtype=np.float32)
    radius = int(np.ceil(3.0 * sigma_px))
    for x, y in points:
        column, row = int(round(float(x))), int(round(float(y)))
        left, right = max(column - radius, 0), min(column + radius + 1, size[1])
        top, bottom = max(row - radius, 0), min(row + radius + 1, size[0])
        if left >= right or top >= bottom:
            continue
        along_x = np.exp(-0.5 * ((np.arange(left, right) - x) / sigma_px) ** 2)
        along_y = np.exp(-0.5 * ((np.arange(top, bottom) - y) / sigma_px) ** 2)
        window = heatmap[top:bottom, left:right]
        np.maximum(window, np.outer(along_y, along_x).astype(np.float32), out=window)
    return heatmap
