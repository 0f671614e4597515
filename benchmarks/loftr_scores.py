"""Accuracy of a LoFTR checkpoint: generated pairs, real pairs, and photographs of other subjects.

Each with the bare view (what the network alone gives) or with the whole pipeline, which adds
rotated and smaller copies, a second round, the refinement and the least confidence.

Errors are px at 512, infinite where the registration failed. The photographs measure what the
network retains outside of its training domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data

from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from dataset.split import read_manifest
from dataset.views import ViewGeometry
from geometry.accuracy import PairError, pair_error
from geometry.estimation import Plausibility
from geometry.matrices import (
    Size,
    affine_about,
    compose,
    image_centre,
    translation_matrix,
    turn_about_centre,
)
from geometry.points import image_corners, warp_points
from geometry.rasters import register_onto_fixed
from registration.matcher import Matcher
from registration.pipeline import register_pair
from registration.trained_matchers import load_matcher

# Sample photographs of scikit-image.
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee"),
    *("coins", "gravel", "grass", "page", "rocket"),
)
VIEW_SEED = 777  # seed of the generated test pairs; training views have other seeds
LIMIT_PX = 5.0  # a pair counts as registered below this error, px at 512


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        kind: of the pairs: "generated", "real" or "photographs".
        bare: with the bare view of the matcher, not the whole pipeline.
        rotation_deg: rotation of the moving images of the real pairs, degrees.
    """

    kind: str
    bare: bool
    rotation_deg: int = 0

    @property
    def title(self) -> str:
        """Heading of the column: ``real 30°, bare``."""
        angle = f" {self.rotation_deg}°" if self.kind == "real" else ""
        return f"{self.kind}{angle}{', bare' * self.bare}"


# The whole pipeline registers the generated pairs and the unrotated real ones after any training.
COLUMNS = (
    Column("generated", bare=True),
    Column("real", bare=True, rotation_deg=0),
    Column("real", bare=True, rotation_deg=30),
    Column("real", bare=False, rotation_deg=30),
    Column("photographs", bare=True),
    Column("photographs", bare=False),
)


class PhotographPair(NamedTuple):
    """A photograph and a second view of it.

    Attributes:
        key: name of the photograph and number of the view.
        fixed: (H, W) float32 in [0, 1].
        moving: (H, W) float32 in [0, 1], 0 outside of the photograph.
        H_fix_to_mov: (3, 3), pixels (x, y).
    """

    key: str
    fixed: np.ndarray
    moving: np.ndarray
    H_fix_to_mov: np.ndarray


def random_homography(size: Size, rng: np.random.Generator) -> np.ndarray:
    """Draw a change of view.

    Rotation up to 30 degrees, scale exp(+-0.15), shift up to 8 % of the long side, perspective
    terms up to 0.15 / long side.

    Args:
        size: (height, width) of both images.
        rng: source of the random numbers.

    Returns:
        ``H_fix_to_mov`` (3, 3), pixels (x, y).
    """
    centre = image_centre(size)
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-0.15, 0.15, 2) / max(size)
    turn = affine_about(
        rng.uniform(-30, 30),
        float(np.exp(rng.uniform(-0.15, 0.15))),
        0.0,
        (0.0, 0.0),
        centre + rng.uniform(-0.08, 0.08, 2) * max(size),
    )
    return compose(translation_matrix(-centre), tilt, turn)


def photograph_pairs(views: int = 3, seed: int = 0) -> list[PhotographPair]:
    """``views`` random views of each of ``PHOTOGRAPHS``, determined by ``seed``."""
    pairs = []
    for index, name in enumerate(PHOTOGRAPHS):
        image = getattr(skimage.data, name)()
        fixed = (image[..., 1] if image.ndim == 3 else image).astype(np.float32) / 255.0
        for view in range(views):
            H = random_homography(fixed.shape, np.random.default_rng([seed, index, view]))
            moving = register_onto_fixed(fixed, np.linalg.inv(H), fixed.shape)
            pairs.append(PhotographPair(f"{name}_{view}", fixed, moving, H))
    return pairs


def find_error(
    matcher: Matcher,
    limits: Plausibility,
    fixed: np.ndarray,
    moving: np.ndarray,
    fixed_landmarks: np.ndarray,
    moving_landmarks: np.ndarray,
    transform: str = "affine",
) -> PairError:
    """Register a pair and measure the transfer error of its landmarks in the moving image.

    Args:
        matcher, limits: of the registration.
        fixed, moving: (H, W) float32 in [0, 1]; the sizes may differ.
        fixed_landmarks, moving_landmarks: (N, 2) float64, pixels (x, y) of each image.
        transform: kind of matrix that is fitted.
    """
    H_fix_to_mov = register_pair(matcher, fixed, moving, transform, limits).H_fix_to_mov
    return pair_error(H_fix_to_mov, fixed_landmarks, moving_landmarks, moving.shape)


def score_generated(
    matcher: Matcher, limits: Plausibility, data: str, mode: str, split: Path
) -> list[float]:
    """Mean corner error of two views of each sample of the test eyes.

    Views: rotation up to 30 degrees, shift up to 10 %, scale 1/1.1 to 1.1.

    Args:
        matcher, limits: of the registration.
        data: folder of generated data.
        mode: kind of pairs.
        split: manifest of the training run, which names the test eyes.
    """
    eyes = set(read_manifest(split)["test"])
    samples = [sample for sample in discover_samples(data, [mode])[0] if sample.eye in eyes]
    geometry = ViewGeometry(
        img_size=None,
        rotation_deg=30.0,
        translation=0.1,
        scale=(1 / 1.1, 1.1),
        shear=0.0,
        mirror=False,
    )
    views, errors = AlignedPairs(samples, geometry, seed=VIEW_SEED), []
    for index in range(2 * len(samples)):
        view = views[ViewKey(0, index)]
        fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        corners = image_corners(fixed.shape)
        mapped = warp_points(corners, view["H_fix_to_mov"].double().numpy())
        errors.append(find_error(matcher, limits, fixed, moving, corners, mapped).mean)
    return errors


def score_real(
    matcher: Matcher, limits: Plausibility, folders: list[Path], rotation_deg: float
) -> list[float]:
    """Median landmark error of each real pair with a rotated moving image.

    The rotated image has a canvas that loses no pixel.

    Args:
        matcher, limits: of the registration.
        folders: folders of real pairs.
        rotation_deg: rotation of the moving images, degrees.
    """
    errors = []
    for pair in (pair for folder in folders for pair in load_real_pairs(folder, folder.name)):
        fixed, moving = pair.images()
        H_moving_to_canvas, canvas = turn_about_centre(moving.shape, rotation_deg)
        if rotation_deg:
            moving = register_onto_fixed(moving, np.linalg.inv(H_moving_to_canvas), canvas)
        landmarks = warp_points(pair.moving_landmarks, H_moving_to_canvas)
        error = find_error(matcher, limits, fixed, moving, pair.fixed_landmarks, landmarks)
        errors.append(error.median)
    return errors


def score_photographs(matcher: Matcher, limits: Plausibility) -> list[float]:
    """Mean corner error of each pair of :func:`photograph_pairs`."""
    errors = []
    for pair in photograph_pairs():
        corners = image_corners(pair.fixed.shape)
        mapped = warp_points(corners, pair.H_fix_to_mov)
        error = find_error(
            matcher, limits, pair.fixed, pair.moving, corners, mapped, transform="homography"
        )
        errors.append(error.mean)
    return errors


def real_folders(real: Path) -> list[Path]:
    """The folders of real pairs inside a folder, sorted; none where it does not exist."""
    return sorted(path for path in real.iterdir() if path.is_dir()) if real.is_dir() else []


def score(weights: Path, data: str, mode: str, real: Path) -> dict[str, list[float]]:
    """Errors of each pair for one checkpoint, by title of ``COLUMNS``.

    Args:
        weights: checkpoint in the folder of its run, beside ``split.yaml``.
        data: folder of generated data.
        mode: kind of the generated pairs.
        real: folder that holds folders of real pairs; without it these columns are left out.
    """
    matcher, limits = load_matcher(weights)
    pipeline, folders = matcher.settings, real_folders(real)
    errors = {}
    for column in COLUMNS:
        matcher.settings = pipeline.bare() if column.bare else pipeline
        if column.kind == "generated":
            found = score_generated(matcher, limits, data, mode, weights.parent / "split.yaml")
        elif column.kind == "photographs":
            found = score_photographs(matcher, limits)
        elif folders:
            found = score_real(matcher, limits, folders, column.rotation_deg)
        else:
            continue
        errors[column.title] = found
        print(f"{weights}: {column.title}: {cell([found])}", flush=True)
    return errors


def cell(errors: Sequence[Sequence[float]]) -> str:
    """Cell of the table: pairs registered with each seed, of all, and the median error.

    Args:
        errors: of each pair, for each seed: two seeds give ``27 + 28 of 56 (0.9 px)``.
    """
    values = np.concatenate([np.asarray(each) for each in errors])
    counts = " + ".join(str(int((np.asarray(each) < LIMIT_PX).sum())) for each in errors)
    return f"{counts} of {len(values)} ({np.median(values):.1f} px)"
