"""Field of view of a fundus image: the region that shows retina, without the dark surround."""

from __future__ import annotations

import cv2
import numpy as np

DARK_LEVEL = 0.12  # threshold, as a share of the 99th percentile; chosen by hand
WHOLE_FRAME_SHARE = 0.08  # least area of a field of view, share of the image; chosen by hand


def estimate_field_of_view(image: np.ndarray) -> np.ndarray:
    """Field of view of a grey image.

    The convex hull of the largest region above the dark level of the camera. The fields of all
    modalities are convex (circles, circles cut off at the top and bottom, scan rectangles), so the
    hull includes haemorrhages, the foveal avascular zone and areas of signal loss. The whole image
    is returned when no region is above the level, or when the hull covers less than
    ``WHOLE_FRAME_SHARE`` of it.

    Args:
        image: (H, W) float in [0, 1].

    Returns:
        (H, W) bool, True inside the field of view.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(1.0, max(image.shape) / 200.0))
    # Relative to the 99th percentile, because a dim image can stay below any absolute level.
    bright = (smooth > DARK_LEVEL * max(float(np.percentile(smooth, 99)), 1e-3)).astype(np.uint8)
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
    """Shrink a field of view; the border of the image counts as an edge of the field.

    Args:
        field_of_view: (H, W) bool.
        margin_px: by how many pixels; not above 0 returns the input.

    Returns:
        (H, W) bool.
    """
    if margin_px <= 0:
        return field_of_view
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin_px + 1, 2 * margin_px + 1))
    padded = np.pad(field_of_view.astype(np.uint8), margin_px)
    return cv2.erode(padded, kernel)[margin_px:-margin_px, margin_px:-margin_px].astype(bool)
