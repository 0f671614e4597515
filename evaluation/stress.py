"""Degradations of the moving image, each with a level, for stress curves and for the hard set.

They are applied in this order: crop, rotation and scale, blur, contrast, noise. The geometry of the
result is one matrix, which is applied to the landmarks too. The random choices (cropped side,
noise) depend only on the name of the pair, the level and a seed, so every method gets the same
image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

from evaluation.sets import EvaluationPair
from geometry.accuracy import to_reference_px
from geometry.estimation import fit_affine
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import Size, compose, translation_matrix, turn_about_centre
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from utils.errors import InputError
from utils.stored_image import MIN_SIDE_PX

SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Stress:
    """Degradation of a moving image; the defaults leave it unchanged.

    Attributes:
        rotation: about the image centre, degrees, clockwise on the screen; the canvas grows so
            that no pixel is lost.
        scale: factor of the image size.
        overlap: share of the retina common to both images that is left after cropping the moving
            image from one side, (0, 1].
        contrast: factor of the deviation from the mean inside the field of view.
        noise: standard deviation of Gaussian noise on every pixel of the image (not on the
            padding of a rotated one), for grey values in [0, 1].
        blur: standard deviation of a Gaussian blur, pixels of the unrotated moving image at a long
            side of 512.
    """

    rotation: float = 0.0
    scale: float = 1.0
    overlap: float = 1.0
    contrast: float = 1.0
    noise: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if not (
            self.scale > 0
            and 0 < self.overlap <= 1
            and self.contrast > 0
            and self.noise >= 0
            and self.blur >= 0
        ):
            raise InputError(
                f"impossible stress level in {asdict(self)}: scale and contrast must be above 0, "
                "overlap in (0, 1], noise and blur at least 0."
            )

    def label(self) -> str:
        """The levels that differ from the unchanged image, as text."""
        changed = [
            f"{name} {value:g}"
            for name, value in asdict(self).items()
            if value != getattr(UNCHANGED, name)
        ]
        return ", ".join(changed) or "as given"

    def slug(self) -> str:
        """The label as part of a file name."""
        return self.label().replace(", ", "_").replace(" ", "")


UNCHANGED = Stress()
LEVEL_NAMES = tuple(item.name for item in fields(Stress))
# Levels of each stress curve, chosen by hand from no to strong degradation.
CURVES: dict[str, tuple[float, ...]] = {
    "rotation": (0.0, 15.0, 30.0, 45.0, 90.0, 135.0, 180.0),
    "scale": (0.5, 0.7, 1.0, 1.4, 2.0),
    "overlap": (1.0, 0.75, 0.5, 0.35),
    "contrast": (1.0, 0.5, 0.333, 0.2),
    "noise": (0.0, 0.025, 0.05, 0.1),
    "blur": (0.0, 1.0, 1.5, 3.0),
}
# Levels of the hard set, chosen by hand.
HARD_LEVELS = {"contrast": 0.333, "noise": 0.05, "blur": 1.5, "overlap": 0.5}
HARD_ROTATIONS = (0.0, 30.0, 150.0)


def curve(name: str) -> list[Stress]:
    """One degradation at all of its levels, the others unchanged."""
    return [Stress(**{name: level}) for level in CURVES[name]]


def hard_set() -> list[Stress]:
    """Low contrast, noise, blur and half of the overlap, singly and combined, each rotated.

    The rotations are 0, 30 and 150 degrees. In addition the scales 0.7 and 1.4 and a rotation of
    135 degrees.
    """
    levels = [*({name: level} for name, level in HARD_LEVELS.items()), HARD_LEVELS]
    return [
        *(Stress(rotation=rotation, **level) for level in levels for rotation in HARD_ROTATIONS),
        Stress(scale=0.7),
        Stress(scale=1.4),
        Stress(rotation=135.0),
    ]


def select_stresses(
    rotations: Sequence[float], scales: Sequence[float], curves: Sequence[str], hard: bool
) -> list[Stress]:
    """The stresses of an evaluation, each once, in the order of the arguments.

    Args:
        rotations: degrees; combined with every scale.
        scales: factors.
        curves: names of stress curves, or "all".
        hard: whether to add the hard set.
    """
    stresses = [
        Stress(rotation=rotation % 360, scale=scale)
        for rotation, scale in product(rotations, scales)
    ]
    for name in CURVES if "all" in curves else curves:
        stresses += curve(name)
    return list(dict.fromkeys(stresses + (hard_set() if hard else [])))


class Box(NamedTuple):
    """A rectangle of whole pixels; ``right`` and ``bottom`` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def _random(pair: EvaluationPair, stress: Stress, seed: int) -> np.random.Generator:
    return np.random.default_rng(
        [seed, zlib.crc32(pair.key.encode()), zlib.crc32(stress.label().encode())]
    )


def crop_box(common: np.ndarray, overlap: float, side: str) -> Box:
    """The part of an image to keep when it is cropped from one side.

    Args:
        common: (H, W) bool, the retina that the other image shows too.
        overlap: share of ``common`` to keep, (0, 1].
        side: "left", "right", "top" or "bottom", the side to remove.
    """
    height, width = common.shape
    along = common.sum(axis=0 if side in ("left", "right") else 1).astype(float)
    if side in ("left", "top"):
        along = along[::-1]
    kept = int(np.searchsorted(np.cumsum(along), overlap * along.sum())) + 1
    kept = min(max(kept, MIN_SIDE_PX), len(along))
    return {
        "left": Box(width - kept, 0, width, height),
        "right": Box(0, 0, kept, height),
        "top": Box(0, height - kept, width, height),
        "bottom": Box(0, 0, width, kept),
    }[side]


def _common_retina(pair: EvaluationPair, seen: np.ndarray) -> np.ndarray:
    """The retina that both images show.

    Args:
        pair: with landmarks, from which the overlap is computed.
        seen: (H, W) bool, field of view of the moving image.

    Returns:
        (H, W) bool, moving frame; ``seen`` if there is no overlap.
    """
    H_mov_to_fix = np.linalg.inv(fit_affine(pair.fixed_landmarks, pair.moving_landmarks))
    in_fixed = (
        register_onto_fixed(
            estimate_field_of_view(pair.fixed).astype(np.float32), H_mov_to_fix, seen.shape
        )
        > 0.5
    )
    common = seen & in_fixed
    return common if common.any() else seen


def stress_geometry(size: Size, stress: Stress, box: Box) -> tuple[np.ndarray, Size]:
    """Geometry of a stress: crop, then rotation and scale about the centre of the crop.

    Args:
        size: (height, width) of the moving image.
        stress: rotation and scale.
        box: the part that the crop keeps; the whole image if nothing is cropped.

    Returns:
        ``H_moving_to_stressed`` (3, 3), original to degraded moving pixels, and the (height, width)
        of the degraded image.

    Raises:
        ValueError: the box is not inside the image.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
        raise ValueError(f"box {box} does not lie in an image of {size}")
    H_crop_to_canvas, canvas = turn_about_centre(
        (bottom - top, right - left), stress.rotation, stress.scale
    )
    return compose(translation_matrix((-left, -top)), H_crop_to_canvas), canvas


def apply_stress(pair: EvaluationPair, stress: Stress, seed: int = 0) -> EvaluationPair:
    """Degrade the moving image of a pair and transform its landmarks accordingly.

    Landmarks outside of a crop stay in the score, because the true transform is defined there too.

    Args:
        pair: the original pair.
        stress: the degradation.
        seed: of the random choices.

    Raises:
        InputError: an overlap below 1 for a pair without landmarks.
    """
    if stress == UNCHANGED:
        return pair
    rng = _random(pair, stress, seed)
    height, width = pair.moving.shape
    seen, box = estimate_field_of_view(pair.moving), Box(0, 0, width, height)
    if stress.overlap < 1:
        if not len(pair.fixed_landmarks):
            raise InputError(
                f"{pair.key}: without landmarks its overlap is not known and cannot be reduced."
            )
        box = crop_box(
            _common_retina(pair, seen), stress.overlap, SIDES[int(rng.integers(len(SIDES)))]
        )
    H_moving_to_stressed, size = stress_geometry(pair.moving.shape, stress, box)
    left, top, right, bottom = box
    rasters = np.stack([pair.moving, seen, np.ones_like(seen)], axis=-1).astype(np.float32)
    # Crop first, so that interpolation at the border of the crop uses no pixel beyond it.
    rasters = rasters[top:bottom, left:right]
    if (stress.rotation % 360, stress.scale) != (0, 1):
        H_stressed_to_crop = compose(
            np.linalg.inv(H_moving_to_stressed), translation_matrix((-left, -top))
        )
        rasters = register_onto_fixed(rasters, H_stressed_to_crop, size)
    blur_px = stress.blur * stress.scale / to_reference_px(pair.moving.shape)
    moving = _degrade(
        rasters[..., 0], rasters[..., 1] > 0.5, rasters[..., 2] > 0.5, stress, blur_px, rng
    )
    return replace(
        pair,
        moving=moving,
        moving_landmarks=warp_points(pair.moving_landmarks, H_moving_to_stressed),
    )


def _degrade(
    image: np.ndarray,
    seen: np.ndarray,
    in_frame: np.ndarray,
    stress: Stress,
    blur_px: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Apply blur, contrast and noise.

    Args:
        image: (H, W) float32 in [0, 1].
        seen: (H, W) bool, field of view; contrast changes only there.
        in_frame: (H, W) bool, pixels of the original image; noise is added only there, not to the
            padding of a rotated canvas.
        stress: the levels.
        blur_px: standard deviation of the blur, pixels of ``image``.
        rng: for the noise.

    Returns:
        (H, W) float32 in [0, 1].
    """
    if blur_px > 0:
        image = cv2.GaussianBlur(image, (0, 0), blur_px)
    if stress.contrast != 1 and seen.any():
        mean = float(image[seen].mean())
        image = np.where(seen, mean + (image - mean) * stress.contrast, image)
    if stress.noise > 0:
        image = image + np.where(in_frame, rng.normal(0.0, stress.noise, image.shape), 0.0)
    return np.clip(image, 0.0, 1.0).astype(np.float32)
