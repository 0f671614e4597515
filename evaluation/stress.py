"""Degradations of the moving image, each with a level, for stress curves and for the hard set.

They act in the order of a bad photograph: less of the retina in the frame (crop), turned and scaled, out of focus (blur), faint
(contrast), noisy. The geometry of the result is one matrix, and landmarks follow it exactly. What is random (which side is
cropped, the noise) depends on the pair's name, the level and a seed alone, so every method sees the same image.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, fields, replace

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
from utils.image_files import MIN_SIDE_PX

SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Stress:
    """What is done to a moving image; the defaults do nothing.

    Attributes:
        rotation: degrees about its centre, clockwise on the screen, onto a canvas that loses no pixel.
        scale: factor of its size.
        overlap: share of the retina common to both images that is left after cropping the moving one from one side.
        contrast: factor of the deviations from its mean inside the field of view.
        noise: standard deviation of Gaussian noise on every pixel of the image, of a range of 1.
        blur: sigma of a Gaussian blur, pixels of the moving image at a long side of 512 (before the turn).
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
                f"impossible stress level in {asdict(self)}: scale and contrast must be above 0, overlap in "
                "(0, 1], noise and blur at least 0."
            )

    def label(self) -> str:
        """For people: what differs from the image as given."""
        changed = [
            f"{name} {value:g}"
            for name, value in asdict(self).items()
            if value != getattr(UNCHANGED, name)
        ]
        return ", ".join(changed) or "as given"

    def slug(self) -> str:
        """For file names."""
        return self.label().replace(", ", "_").replace(" ", "")


UNCHANGED = Stress()
LEVEL_NAMES = tuple(item.name for item in fields(Stress))
CURVES: dict[str, tuple[float, ...]] = {
    "rotation": (0.0, 15.0, 30.0, 45.0, 90.0, 135.0, 180.0),
    "scale": (0.5, 0.7, 1.0, 1.4, 2.0),
    "overlap": (1.0, 0.75, 0.5, 0.35),
    "contrast": (1.0, 0.5, 0.333, 0.2),
    "noise": (0.0, 0.025, 0.05, 0.1),
    "blur": (0.0, 1.0, 1.5, 3.0),
}
HARD_LEVELS = {"contrast": 0.333, "noise": 0.05, "blur": 1.5, "overlap": 0.5}
HARD_ROTATIONS = (0.0, 30.0, 150.0)


def curve(name: str) -> list[Stress]:
    """One stress at all of its levels, everything else as given."""
    return [Stress(**{name: level}) for level in CURVES[name]]


def hard_set() -> list[Stress]:
    """Low contrast, noise, blur and half of the overlap, singly and all together, at 0, 30 and 150 degrees; beside them the
    scales 0.7 and 1.4 and a turn of 135 degrees."""
    levels = [*({name: level} for name, level in HARD_LEVELS.items()), HARD_LEVELS]
    return [
        *(Stress(rotation=rotation, **level) for level in levels for rotation in HARD_ROTATIONS),
        Stress(scale=0.7),
        Stress(scale=1.4),
        Stress(rotation=135.0),
    ]


def _random(pair: EvaluationPair, stress: Stress, seed: int) -> np.random.Generator:
    return np.random.default_rng(
        [seed, zlib.crc32(pair.key.encode()), zlib.crc32(stress.label().encode())]
    )


def crop_box(common: np.ndarray, overlap: float, side: str) -> tuple[int, int, int, int]:
    """What to keep of an image when it is cut from one side.

    Args:
        common: (H, W) bool, the retina that the other image shows too.
        overlap: share of it to be kept.
        side: "left", "right", "top" or "bottom", which is cut off.

    Returns:
        left, top, right, bottom in pixels, right and bottom exclusive.
    """
    height, width = common.shape
    along = common.sum(axis=0 if side in ("left", "right") else 1).astype(float)
    if side in ("left", "top"):
        along = along[::-1]
    kept = int(np.searchsorted(np.cumsum(along), overlap * along.sum())) + 1
    kept = min(max(kept, MIN_SIDE_PX), len(along))
    return {
        "left": (width - kept, 0, width, height),
        "right": (0, 0, kept, height),
        "top": (0, height - kept, width, height),
        "bottom": (0, 0, width, kept),
    }[side]


def _common_retina(pair: EvaluationPair, seen: np.ndarray) -> np.ndarray:
    """Where the moving image shows retina that the fixed image shows too: (H, W) bool, moving frame."""
    H_mov_to_fix = np.linalg.inv(fit_affine(pair.fixed_landmarks, pair.moving_landmarks))
    in_fixed = (
        register_onto_fixed(
            estimate_field_of_view(pair.fixed).astype(np.float32), H_mov_to_fix, seen.shape
        )
        > 0.5
    )
    common = seen & in_fixed
    return common if common.any() else seen


def stress_geometry(
    size: Size, stress: Stress, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, Size]:
    """Where the pixels of the moving image go: ``H_moving_to_stressed`` (3, 3), and the new size (height, width).

    Args:
        size: (height, width) of the moving image.
        box: what the crop keeps (see :func:`crop_box`); the whole image when nothing is cropped.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
        raise ValueError(f"box {box} does not lie in an image of {size}")
    H_crop_to_canvas, canvas = turn_about_centre(
        (bottom - top, right - left), stress.rotation, stress.scale
    )
    return compose(translation_matrix((-left, -top)), H_crop_to_canvas), canvas


def apply_stress(pair: EvaluationPair, stress: Stress, seed: int = 0) -> EvaluationPair:
    """The pair with its moving image degraded, and its moving landmarks where their pixels went.

    Landmarks that a crop cut off stay in the score: the transform that is looked for holds for them too.

    Raises:
        InputError: an overlap below 1 is asked for a pair without landmarks.
    """
    if stress == UNCHANGED:
        return pair
    rng = _random(pair, stress, seed)
    height, width = pair.moving.shape
    seen, box = estimate_field_of_view(pair.moving), (0, 0, width, height)
    if stress.overlap < 1:
        if not len(pair.fixed_landmarks):
            raise InputError(
                f"{pair.key}: without landmarks its overlap is not known and cannot be cut."
            )
        box = crop_box(
            _common_retina(pair, seen), stress.overlap, SIDES[int(rng.integers(len(SIDES)))]
        )
    H_moving_to_stressed, size = stress_geometry(pair.moving.shape, stress, box)
    left, top, right, bottom = box
    rasters = np.stack([pair.moving, seen, np.ones_like(seen)], axis=-1).astype(np.float32)
    # Cut first: interpolation at the edge of the crop must not see what lies beyond it.
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
    """Blur, contrast and noise; outside of ``in_frame`` there was no camera, so nothing happens there."""
    if blur_px > 0:
        image = cv2.GaussianBlur(image, (0, 0), blur_px)
    if stress.contrast != 1 and seen.any():
        mean = float(image[seen].mean())
        image = np.where(seen, mean + (image - mean) * stress.contrast, image)
    if stress.noise > 0:
        image = image + np.where(in_frame, rng.normal(0.0, stress.noise, image.shape), 0.0)
    return np.clip(image, 0.0, 1.0).astype(np.float32)
