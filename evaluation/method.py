"""Methods that evaluate.py compares, one file each.

A file ``evaluation/methods/<name>.py`` (dashes of the name become underscores) holds one function, ``make(setting) -> Method``. Most
are made of a function on two grey images and one of the helpers here:

- :func:`by_matches` for a function that returns corresponding points: as in our own method a similarity proposes, the same
  robust estimator fits the matrix to the matches near it, and none counts at the edge of a field of view;
- :func:`by_matrix` for a function that returns a matrix.

Both bring the two images to the same working size as our own method first (the field of view, not the frame), and both count
a pair as failed when nothing plausible comes out. A package or weights that are not here are a :class:`NotAvailable`, which the
report names; they never stop a comparison.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from evaluation.sets import EvaluationPair
from geometry.curved_transforms import CURVED_KINDS
from geometry.estimation import (
    MATRIX_KINDS,
    Plausibility,
    TransformEstimate,
    estimate_transform,
    implausible_because,
)
from geometry.field_of_view import erode_field
from geometry.matrices import Size, compose
from geometry.points import image_corners, warp_points
from geometry.transforms import Transform
from registration.matcher import MatchSettings
from registration.pipeline import Registration
from registration.proposals import propose_similarity
from registration.working_frame import WorkingImage, to_working_frame
from utils.errors import InputError

FOLDER = Path(__file__).resolve().with_name("methods")


class NotAvailable(Exception):
    """A method cannot run here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class MethodSetting:
    """What all methods of a comparison share, and where the trained ones find their weights.

    Attributes:
        weights: by name of the method, checkpoint files.
        transform: one of ``registration.pipeline.TRANSFORMS``; methods that know no other than matrices take the affine where it is
            none of those.
        long_side: working size: the field of view of either image is brought to it, pixels; None takes each checkpoint's own.
        usual_long_side: the one of methods that have no checkpoint, where ``long_side`` is None.
        device: "auto", "cpu" or "cuda".
    """

    weights: dict[str, str | None] = field(default_factory=dict)
    transform: str = "affine"
    long_side: int | None = None
    usual_long_side: int = MatchSettings().long_side
    device: str = "auto"

    @property
    def matrix_kind(self) -> str:
        """The transform of methods that only find matrices."""
        return self.transform if self.transform in MATRIX_KINDS else "affine"

    @property
    def working_px(self) -> int:
        """Working size of methods that have no checkpoint."""
        return self.long_side or self.usual_long_side


class Correspondences(NamedTuple):
    """Corresponding points (N, 2) in pixels of the fixed and of the moving image."""

    fixed_points: np.ndarray
    moving_points: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What a method says about a pair, in original pixels of both images; ``H_fix_to_mov`` is None exactly when failed.

    ``curved`` is a transform beyond affine, where there is one; ``H_fix_to_mov`` is then the affine part of it.
    """

    H_fix_to_mov: np.ndarray | None
    reason: str = ""
    fixed_points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    moving_points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, bool), repr=False)
    seconds: float = 0.0
    curved: Transform | None = None

    @property
    def status(self) -> str:
        """ "ok" or "failed"."""
        return "failed" if self.H_fix_to_mov is None else "ok"

    @property
    def fix_to_mov(self) -> np.ndarray | Transform | None:
        """What maps fixed pixels to moving pixels."""
        return self.curved or self.H_fix_to_mov


@dataclass(frozen=True)
class Method:
    """A method ready to run.

    Attributes:
        run: pair in, outcome out.
        settings: everything that changes its results; printed, written to metrics.json, and compared with the cache.
        is_yardstick: it says "ok" whatever it is given, so its answer to wrong pairs means nothing.
    """

    run: Callable[[EvaluationPair], Outcome]
    settings: dict[str, object]
    is_yardstick: bool = False


class WorkingPair(NamedTuple):
    """Both images in their working frames: the field of view, at the working size."""

    fixed: WorkingImage
    moving: WorkingImage


def working_pair(pair: EvaluationPair, working_px: int) -> WorkingPair:
    """Cut the fields of view out of both images and bring them to the working size, as our own method does."""
    return WorkingPair(
        to_working_frame(pair.fixed, working_px), to_working_frame(pair.moving, working_px)
    )


def inverted(work: WorkingImage) -> np.ndarray:
    """Bright vessels made dark and dark ones bright, inside the field of view."""
    return np.where(work.field_of_view, 1.0 - work.image, work.image).astype(np.float32)


def by_matches(
    find: Callable[[np.ndarray, np.ndarray], Correspondences],
    setting: MethodSetting,
    settings: dict[str, object],
    try_inverted: bool = True,
) -> Method:
    """A method from a function that finds matches.

    Args:
        find: two grey images (H, W) float32 in [0, 1] to matches in their pixels; a RuntimeError counts as failed.
        setting: shared by all methods.
        settings: what else changes the results, for the record.
        try_inverted: match the moving image inverted too and keep what agrees with more matches. Vessels are dark in
            one modality and bright in another, which most descriptors cannot see past.
    """
    usual, limits = MatchSettings(), Plausibility()

    def run(pair: EvaluationPair) -> Outcome:
        start = time.perf_counter()
        work = working_pair(pair, setting.working_px)
        inner = [erode_field(side.field_of_view, usual.field_margin_px) for side in work]
        looks = [work.moving.image, *([inverted(work.moving)] if try_inverted else [])]
        tried: list[tuple[TransformEstimate, Correspondences]] = []
        for moving in looks:
            try:
                found = _within(inner, find(work.fixed.image, moving))
            except (RuntimeError, cv2.error) as error:
                return Outcome(None, _last_line(error), seconds=time.perf_counter() - start)
            tried.append(
                (
                    _fit_near_a_similarity(
                        found, work.fixed.frame.size, setting.matrix_kind, usual, limits
                    ),
                    found,
                )
            )
        estimate, found = max(tried, key=lambda item: (item[0].status == "ok", item[0].n_inliers))
        return Outcome(
            _to_original(estimate.H_fix_to_mov, work),
            estimate.reason,
            warp_points(found.fixed_points, np.linalg.inv(work.fixed.frame.H_image_to_working)),
            warp_points(found.moving_points, np.linalg.inv(work.moving.frame.H_image_to_working)),
            estimate.inliers,
            time.perf_counter() - start,
        )

    return Method(
        run,
        settings
        | {
            "working_size": setting.working_px,
            "transform": setting.matrix_kind,
            "estimator": "similarity, then estimate_transform (MAGSAC) on the matches near it",
            "proposal_threshold_px": usual.proposal_threshold_px,
            "radius_px": usual.guided_radii_px[0],
            "inlier_threshold_px": usual.inlier_threshold_px,
            "field_margin_px": usual.field_margin_px,
            "plausibility": asdict(limits),
            "moving_also_inverted": try_inverted,
            "opencv": cv2.__version__,
        },
    )


def _within(fields: list[np.ndarray], found: Correspondences) -> Correspondences:
    """Correspondences whose points both lie in the fields (H, W) of their images: every detector likes the edges."""
    keep = np.ones(len(found.fixed_points), bool)
    for points, field_of_view in zip(found, fields, strict=True):
        x, y = np.clip(np.rint(points).astype(int), 0, np.array(field_of_view.shape[::-1]) - 1).T
        keep &= field_of_view[y, x] > 0
    return Correspondences(*(points[keep] for points in found))


def _fit_near_a_similarity(
    found: Correspondences,
    fixed_size: Size,
    transform: str,
    usual: MatchSettings,
    limits: Plausibility,
) -> TransformEstimate:
    """Propose a similarity, which needs two right matches at a time, and fit the transform to the matches near it."""
    proposal = propose_similarity(*found, fixed_size, usual, limits)
    if proposal.H_fix_to_mov is None:
        return proposal
    distance = np.linalg.norm(
        warp_points(found.fixed_points, proposal.H_fix_to_mov) - found.moving_points, axis=1
    )
    near = distance <= usual.guided_radii_px[0]
    estimate = estimate_transform(
        found.fixed_points[near],
        found.moving_points[near],
        fixed_size,
        transform,
        usual.inlier_threshold_px,
        replace(limits, min_inlier_share=0.0),
    )
    inliers = np.zeros(len(near), bool)
    inliers[near] = estimate.inliers
    return replace(estimate, inliers=inliers)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def by_matrix(
    find: Callable[[WorkingPair], np.ndarray], setting: MethodSetting, settings: dict[str, object]
) -> Method:
    """A method from a function that finds the matrix itself.

    Args:
        find: the pair in working frames to ``H_fix_to_mov`` (3, 3) in working pixels; a RuntimeError counts as failed.
    """

    def run(pair: EvaluationPair) -> Outcome:
        start = time.perf_counter()
        work = working_pair(pair, setting.working_px)
        try:
            H = find(work)
        except RuntimeError as error:
            return Outcome(None, _last_line(error), seconds=time.perf_counter() - start)
        # No matches to count or to spread: the corners stand in, so that only the matrix itself is judged.
        corners = image_corners(work.fixed.frame.size)
        reason = implausible_because(
            H, corners, len(corners), work.fixed.frame.size, Plausibility(min_inliers=len(corners))
        )
        return Outcome(
            None if reason else _to_original(H, work), reason, seconds=time.perf_counter() - start
        )

    return Method(
        run, settings | {"working_size": setting.working_px, "plausibility": asdict(Plausibility())}
    )


def _to_original(H_working: np.ndarray | None, work: WorkingPair) -> np.ndarray | None:
    if H_working is None:
        return None
    H = compose(
        work.fixed.frame.H_image_to_working,
        H_working,
        np.linalg.inv(work.moving.frame.H_image_to_working),
    )
    return H / H[2, 2]


def from_registration(result: Registration) -> Outcome:
    """The outcome of our own pipeline."""
    curved = (
        result.transform
        if result.transform is not None and result.transform.kind in CURVED_KINDS
        else None
    )
    return Outcome(
        result.H_fix_to_mov,
        result.reason,
        result.fixed_points,
        result.moving_points,
        result.inliers,
        result.seconds,
        curved,
    )


def available_methods() -> list[str]:
    """Names of all methods that have a file here."""
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("[a-z]*.py"))


def load_method(name: str, setting: MethodSetting) -> Method:
    """Make a method by its name.

    Raises:
        InputError: there is no file of this name.
        NotAvailable: its package or its weights are not here.
    """
    if name not in available_methods():
        raise InputError(
            f"--compare {name}: no such method; there are {', '.join(available_methods())}."
        )
    return importlib.import_module(f"evaluation.methods.{name.replace('-', '_')}").make(setting)


def require(package: str, name: str) -> object:
    """Import an optional package.

    Raises:
        NotAvailable: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise NotAvailable(
            f"{name}: not installed; python -m pip install -r requirements-bench.txt ({error})"
        ) from error
