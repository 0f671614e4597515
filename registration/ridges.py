"""Ridge maps of a pair: registration by their correlation, and a measure of their agreement.

Vessels are ridges in every modality (:mod:`model.ridge_stem`), so the ridge maps of two images of
one retina correlate where they are aligned. The maximum of this correlation is more accurate than
keypoints, and its height distinguishes right transforms from wrong ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch

from geometry.field_of_view import erode_field
from geometry.matrices import Size
from geometry.points import corner_shift
from model.ridge_stem import RidgeStem
from registration.working_frame import WorkingImage


@dataclass(frozen=True)
class RidgeConstants:
    """Constants of the ridge maps, their correlation and their agreement; chosen by hand."""

    sigmas_px: tuple[float, ...] = (1.3, 2.2, 3.6)  # scales of the ridge filter, working pixels
    field_margin_px: int = 8  # border of the field of view that is left out: its edge is a ridge
    max_iterations: int = 60  # of ECC
    min_gain: float = 3e-5  # gain in correlation per iteration at which ECC stops
    max_correction_px: float = 8.0  # largest shift of a corner by ECC, moving working pixels
    max_displacement_px: int = 24  # largest displacement of the reference correlations
    peak_radius_px: int = 6  # smaller displacements belong to the peak of the true alignment
    min_seen: float = 0.99  # interpolated field of view above which a pixel counts as inside
    min_deviation: float = 1e-6  # of the reference correlations; less means constant maps


RIDGES = RidgeConstants()
ECC_MOTIONS = {"affine": cv2.MOTION_AFFINE, "homography": cv2.MOTION_HOMOGRAPHY}


def ridge_strength(image: np.ndarray) -> np.ndarray:
    """Mean ridge strength over the scales.

    Args:
        image: (h, w) float32 in [0, 1], working pixels.

    Returns:
        (h, w) float32 in [0, 2].
    """
    stem = RidgeStem(RIDGES.sigmas_px)
    with torch.inference_mode():
        return stem(torch.from_numpy(image)[None, None])[0].mean(0).numpy()


class RidgePair:
    """The ridge maps of two working images.

    Args:
        fixed, moving: the full-size working images.

    Attributes:
        images: the working images, fixed and moving.
    """

    def __init__(self, fixed: WorkingImage, moving: WorkingImage) -> None:
        self.images = fixed, moving

    @property
    def fixed_size(self) -> Size:
        """(height, width) of the fixed working image."""
        height, width = self.images[0].image.shape
        return height, width

    @property
    def H_images_to_working(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrices (3, 3) from original to working pixels, of the fixed and the moving image."""
        fixed, moving = self.images
        return fixed.frame.H_image_to_working, moving.frame.H_image_to_working

    @cached_property
    def maps(self) -> list[np.ndarray]:
        """Mean ridge strength over the scales, fixed and moving: (h, w) float32, 0 outside."""
        return [
            ridge_strength(working.image) * field
            for working, field in zip(self.images, self.fields, strict=True)
        ]

    @cached_property
    def fields(self) -> list[np.ndarray]:
        """Fields of view without their border, fixed and moving: (h, w) bool."""
        return [
            erode_field(working.field_of_view, RIDGES.field_margin_px) for working in self.images
        ]

    def refine(
        self,
        H_fix_to_mov: np.ndarray,
        matrix_kind: str,
        blur_px: int = 1,
        min_gain: float = RIDGES.min_gain,
        max_correction_px: float = RIDGES.max_correction_px,
    ) -> np.ndarray:
        """Maximise the correlation of the ridge maps (ECC; Evangelidis & Psarakis, PAMI 2008).

        Convention: (3, 3) matrices from fixed to moving working pixels, (x, y).

        Args:
            H_fix_to_mov: (3, 3), the start, a few pixels from the optimum.
            matrix_kind: "affine" or "homography"; ECC has no similarity, which is returned as is.
            blur_px: side of the Gaussian kernel on both maps, odd; 1 = none. Blur widens the basin
                of convergence and lowers the accuracy.
            min_gain: gain in correlation per iteration at which ECC stops.
            max_correction_px: largest shift of a corner of the fixed image, moving pixels.

        Returns:
            (3, 3), the refined matrix; the given one where ECC diverges or exceeds the shift.
        """
        if matrix_kind not in ECC_MOTIONS:
            return H_fix_to_mov
        fixed, moving = self.maps
        rows = 2 if matrix_kind == "affine" else 3
        start = np.ascontiguousarray(H_fix_to_mov[:rows], dtype=np.float32)
        criteria = (
            cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS,
            RIDGES.max_iterations,
            min_gain,
        )
        fixed_mask, moving_mask = (field.astype(np.uint8) for field in self.fields)
        motion = ECC_MOTIONS[matrix_kind]
        try:
            _, refined = cv2.findTransformECCWithMask(
                fixed, moving, fixed_mask, moving_mask, start, motion, criteria, blur_px
            )
        except cv2.error as error:
            if error.code != cv2.Error.StsNoConv:
                raise
            return H_fix_to_mov
        H = refined.astype(np.float64)
        if rows == 2:
            H = np.vstack([H, [0.0, 0.0, 1.0]])
        shift = corner_shift(H_fix_to_mov, H, self.fixed_size)
        return H if shift <= max_correction_px else H_fix_to_mov

    def agreement(self, H_fix_to_mov: np.ndarray) -> float:
        """Agreement of the ridge maps under a matrix, see :func:`ridge_agreement`.

        Args:
            H_fix_to_mov: (3, 3), working pixels.
        """
        fixed, moving = self.maps
        size = fixed.shape[::-1]
        warped, seen = (
            cv2.warpPerspective(
                raster, H_fix_to_mov, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            for raster in (moving, self.fields[1].astype(np.float32))
        )
        return ridge_agreement(fixed, warped, (seen > RIDGES.min_seen) & self.fields[0])


def ridge_agreement(fixed: np.ndarray, registered: np.ndarray, overlap: np.ndarray) -> float:
    """Correlation of two aligned ridge maps, relative to that of displaced ones.

    The maps are compared at half resolution.

    Args:
        fixed, registered: (H, W) float32, ridge maps in one frame.
        overlap: (H, W) bool, where both show retina.

    Returns:
        Standard deviations by which the correlation without displacement exceeds the mean of those
        with displacements of 6 to 24 px; 0 where the overlap is too small. Unrelated images stay
        below about 4.
    """
    half = [
        cv2.resize(raster.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for raster in (fixed, registered, overlap)
    ]
    reach = RIDGES.max_displacement_px // 2
    inner = tuple(slice(reach, -reach) for _ in range(2))
    mask = (half[2][inner] > RIDGES.min_seen).astype(np.float32)
    if mask.size == 0 or mask.sum() < RIDGES.max_displacement_px**2:
        return 0.0
    surface = cv2.matchTemplate(half[0], half[1][inner], cv2.TM_CCOEFF_NORMED, mask=mask)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    displaced = surface[np.hypot(x, y) > RIDGES.peak_radius_px / 2]
    deviation = float(displaced.std())
    if not np.isfinite(deviation) or deviation <= RIDGES.min_deviation:
        return 0.0
    return float((surface[reach, reach] - displaced.mean()) / deviation)
