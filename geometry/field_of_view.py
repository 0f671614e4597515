"""Where a fundus image shows retina: the field of view inside its dark surround."""

from __future__ import annotations

import cv2
import numpy as np

DARK_LEVEL = 0.06
WHOLE_FRAME_SHARE = 0.08


def estimate_field_of_view(image: np.ndarray) -> np.ndarray:
    """Field of view of a grey image.

    The convex hull of the largest region brighter than the camera's black: the fields of all modalities (circles, circles
    clipped above and below, scan rectangles) are convex, so the hull closes over haemorrhages, the foveal
    avascular zone and signal loss. An image without a dark surround, or one so dark that less than 8 % of it passes,
    counts whole.

    Args:
        image: (H, W) float in [0, 1].

    Returns:
        (H, W) bool.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(1.0, max(image.shape) / 200.0))
    # Against the brightest part, because a dim examination may stay below any absolute level.
    bright = (smooth > DARK_LEVEL * max(float(np.percentile(smooth, 99)), 1e-3) * 2.0).astype(
        np.uint8
    )
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(bright)
    if count < 2:
        return np.ones(image.shape, dtype=bool)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    contours, _ = cv2.findContours(
        (labels == largest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    hull = np.zeros(image.shape, dtype=np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(contours)), 1)
    if hull.mean() < WHOLE_FRAME_SHARE:
        return np.ones(image.shape, dtype=bool)
    return hull.astype(bool)


def erode_field(field_of_view: np.ndarray, margin_px: int) -> np.ndarray:
    """Shrink a field of view (H, W) bool by ``margin_px``; the frame's own border counts as its edge."""
    if margin_px <= 0:
        return field_of_view
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin_px + 1, 2 * margin_px + 1))
    padded = np.pad(field_of_view.astype(np.uint8), margin_px)
    return cv2.erode(padded, kernel)[margin_px:-margin_px, margin_px:-margin_px].astype(bool)
