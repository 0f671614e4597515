"""What the images themselves say about a transform, keypoints aside: their ridge maps, laid on each other.

Vessels are ridges in every modality (:mod:`model.ridge_stem`), so two ridge maps of one retina correlate where they are
aligned, whatever the images' colours. That settles the last pixel of a transform better than keypoints do, and tells right
transforms from wrong ones.
"""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np
import torch

from geometry.field_of_view import erode_field
from geometry.points import corner_shift
from model.ridge_stem import RidgeStem
from registration.working_frame import WorkingImage

RIDGE_SIGMAS_PX = (1.3, 2.2, 3.6)
FIELD_MARGIN_PX = 8  # the edge of a field of view is a ridge too
MAX_ITERATIONS, LEAST_GAIN = 60, 3e-5
MAX_CORRECTION_PX = 8.0
MAX_DISPLACEMENT_PX = 24  # displacements up to this are what the true one is compared with
PEAK_PX = 6  # nearer displacements belong to the true one's own peak
MOTIONS = {"affine": cv2.MOTION_AFFINE, "homography": cv2.MOTION_HOMOGRAPHY}


class RidgePair:
    """The ridge maps of two working images.

    Args:
        fixed, moving: the working images.
    """

    def __init__(self, fixed: WorkingImage, moving: WorkingImage) -> None:
        self.images = fixed, moving

    @cached_property
    def ridges(self) -> list[np.ndarray]:
        """Mean ridge strength over the scales of both images, (h, w) float32, 0 outside of the fields of view."""
        stem = RidgeStem(RIDGE_SIGMAS_PX)
        maps = []
        for working, field in zip(self.images, self.fields, strict=True):
            with torch.inference_mode():
                strength = stem(torch.from_numpy(working.image)[None, None])[0].mean(0).numpy()
            maps.append(strength * field)
        return maps

    @cached_property
    def fields(self) -> list[np.ndarray]:
        """Fields of view of both without their edges, (h, w) bool."""
        return [erode_field(working.field_of_view, FIELD_MARGIN_PX) for working in self.images]

    def refine(
        self,
        H_fix_to_mov: np.ndarray,
        transform: str,
        blur_px: int = 1,
        least_gain: float = LEAST_GAIN,
        farthest_px: float = MAX_CORRECTION_PX,
    ) -> np.ndarray:
        """Maximise the correlation of the ridge maps over the transform (Evangelidis & Psarakis, PAMI 2008).

        Convention: (3, 3) matrices in working pixels.

        Args:
            H_fix_to_mov: where to start, a few pixels from the optimum.
            transform: "affine" and "homography" are refined; a similarity, which the method does not know, is kept.
            blur_px: side of the Gaussian kernel that both maps are blurred with, odd; 1 = none. Blurred maps lead from further
                away, less exactly.
            least_gain: of the correlation, in one iteration; it stops at less.
            farthest_px: how far a corner of the fixed image may move, moving pixels.

        Returns:
            The refined matrix; the given one where the method diverges or wants to move a corner further.
        """
        if transform not in MOTIONS:
            return H_fix_to_mov
        fixed, moving = self.ridges
        rows = 2 if transform == "affine" else 3
        start = np.ascontiguousarray(H_fix_to_mov[:rows], dtype=np.float32)
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, MAX_ITERATIONS, least_gain)
        try:
            _, refined = cv2.findTransformECCWithMask(
                fixed,
                moving,
                *(field.astype(np.uint8) for field in self.fields),
                start,
                MOTIONS[transform],
                criteria,
                blur_px,
            )
        except cv2.error as error:
            if error.code != cv2.Error.StsNoConv:
                raise
            return H_fix_to_mov
        H = (
            np.vstack([refined, [0.0, 0.0, 1.0]]).astype(np.float64)
            if rows == 2
            else refined.astype(np.float64)
        )
        return H if corner_shift(H_fix_to_mov, H, fixed.shape) <= farthest_px else H_fix_to_mov

    def agreement(self, H_fix_to_mov: np.ndarray) -> float:
        """How much better the ridges agree under the transform than displaced from it, see :func:`ridge_agreement`."""
        fixed, moving = self.ridges
        size = fixed.shape[::-1]
        warped, seen = (
            cv2.warpPerspective(
                raster, H_fix_to_mov, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            for raster in (moving, self.fields[1].astype(np.float32))
        )
        return ridge_agreement(fixed, warped, (seen > 0.99) & self.fields[0])


def ridge_agreement(fixed: np.ndarray, registered: np.ndarray, overlap: np.ndarray) -> float:
    """By how many standard deviations the correlation of two aligned ridge maps exceeds that of displaced ones.

    Args:
        fixed, registered: (H, W) float32 ridge maps in one frame.
        overlap: (H, W) bool, where both show retina.

    Returns:
        The correlation without displacement, minus the mean and over the standard deviation of those with displacements
        of 6 to 24 px; 0 where the overlap is too small to tell. Unrelated images stay below about 4.
    """
    half = [
        cv2.resize(raster.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for raster in (fixed, registered, overlap)
    ]
    reach = MAX_DISPLACEMENT_PX // 2
    inner = tuple(slice(reach, -reach) for _ in range(2))
    mask = (half[2][inner] > 0.99).astype(np.float32)
    if mask.size == 0 or mask.sum() < MAX_DISPLACEMENT_PX**2:
        return 0.0
    surface = cv2.matchTemplate(half[0], half[1][inner], cv2.TM_CCOEFF_NORMED, mask=mask)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    beside = surface[np.hypot(x, y) > PEAK_PX / 2]
    spread = float(beside.std())
    return (
        float((surface[reach, reach] - beside.mean()) / spread)
        if np.isfinite(spread) and spread > 1e-6
        else 0.0
    )
