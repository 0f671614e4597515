"""Transforms through the landmarks of the page: residuals, left-out residuals, what they support.

Residuals are moving px at 512 (:mod:`geometry.accuracy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geometry.accuracy import to_reference_px
from geometry.landmark_fits import FITTERS, fit_landmarks
from geometry.matrices import Size
from geometry.transforms import MatrixTransform, Transform, affine_of
from review_page.pair_data import Landmarks, PairMatches
from utils.errors import InputError

AUTO = "auto"
KINDS = (AUTO, *FITTERS)
MIN_LANDMARKS = 3  # of a transform that is saved
# Matches beyond this from the transform of the landmarks are wrong, px at 512; chosen by hand.
MATCH_TOLERANCE_PX = 6.0
MATCH_ROUNDS = 2  # of fit and selection of matches
SAME_PLACE_PX = 12.0  # fixed px at 512 within which two annotators mean the same point


@dataclass(frozen=True)
class PageFit:
    """A transform through landmarks, or landmarks and matches.

    Attributes:
        transform: fixed pixels to moving pixels.
        residuals: (N,) of the landmarks, moving px at 512.
        left_out: (N,) of each landmark in the fit to all other points; infinite where those do not
            determine it.
        n_matches: number of matches that took part.
        advice: which kind of transform the landmarks support, and why.
        warning: what is suspicious about the transform; "" for nothing.
    """

    transform: Transform
    residuals: np.ndarray
    left_out: np.ndarray
    n_matches: int
    advice: str
    warning: str

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON; None for infinite residuals."""
        measured = self.left_out[np.isfinite(self.left_out)]
        return {
            "kind": self.transform.kind,
            "residuals": np.round(self.residuals, 3).tolist(),
            "left_out": [round(v, 3) if np.isfinite(v) else None for v in self.left_out.tolist()],
            "median": round(float(np.median(self.residuals)), 3),
            "left_out_median": round(float(np.median(measured)), 3) if len(measured) else None,
            "worst": int(np.argmax(np.where(np.isfinite(self.left_out), self.left_out, -1.0)))
            if len(measured)
            else None,
            "n_matches": self.n_matches,
            "advice": self.advice,
            "warning": self.warning,
        }


def fit_page(
    marks: Landmarks,
    fixed_size: Size,
    moving_size: Size,
    kind: str = AUTO,
    matches: PairMatches | None = None,
) -> PageFit:
    """Fit a transform of a given kind, or of the kind that the landmarks support.

    With matches, those that agree with the landmarks take part; both groups have the same total
    weight, because many matches in one region must not outvote a few landmarks.

    Args:
        marks: at least three.
        fixed_size, moving_size: (height, width) of the images.
        kind: one of ``KINDS``.
        matches: of the pair; None fits the landmarks alone.

    Raises:
        InputError: unknown kind, too few landmarks, or landmarks on one line.
    """
    if kind not in KINDS:
        raise InputError(f"no kind of transform {kind!r}; there are {', '.join(KINDS)}.")
    if len(marks.fixed) < MIN_LANDMARKS:
        raise InputError(f"{len(marks.fixed)} landmarks; a transform needs {MIN_LANDMARKS}.")
    supported = fit_landmarks(*marks, fixed_size, moving_size)
    chosen = supported.kind if kind == AUTO else kind
    agreeing = Landmarks(np.zeros((0, 2)), np.zeros((0, 2)))
    transform: Transform = supported.transform
    if matches is not None:
        for _ in range(MATCH_ROUNDS):
            agreeing = _agreeing(matches, transform, moving_size)
            transform = _fit(chosen, marks, agreeing)
    elif kind != AUTO:
        transform = _fit(chosen, marks, agreeing)
    scale = to_reference_px(moving_size)
    residuals = np.linalg.norm(transform.map(marks.fixed) - marks.moving, axis=1) * scale
    return PageFit(
        transform,
        residuals,
        _left_out(chosen, marks, agreeing) * scale,
        len(agreeing.fixed),
        supported.reason,
        _warning(transform, marks),
    )


def provisional_transform(marks: Landmarks) -> Transform | None:
    """The similarity through two landmarks, which proposes the place of the third; else None.

    Args:
        marks: of the pair.
    """
    if len(marks.fixed) != 2:
        return None
    # A similarity is a complex linear map z -> a z + b.
    fixed, moving = (points @ np.array([1.0, 1.0j]) for points in marks)
    if abs(fixed[1] - fixed[0]) < 1.0 or abs(moving[1] - moving[0]) < 1.0:
        return None
    a = (moving[1] - moving[0]) / (fixed[1] - fixed[0])
    b = moving[0] - a * fixed[0]
    H = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0.0, 0.0, 1.0]])
    return MatrixTransform(H, "similarity")


def _agreeing(matches: PairMatches, transform: Transform, moving_size: Size) -> Landmarks:
    """Matches near a transform."""
    distance = np.linalg.norm(transform.map(matches.fixed) - matches.moving, axis=1)
    kept = distance * to_reference_px(moving_size) < MATCH_TOLERANCE_PX
    return Landmarks(matches.fixed[kept], matches.moving[kept])


def _fit(kind: str, marks: Landmarks, agreeing: Landmarks) -> Transform:
    """Least squares; landmarks are repeated so that they weigh as much as the matches.

    Raises:
        InputError: too few points of both kinds, or points that do not determine the transform.
    """
    fitter, least = FITTERS[kind]
    n_points = len(marks.fixed) + len(agreeing.fixed)
    if n_points < least:
        raise InputError(f"{n_points} points; this kind of transform, {kind}, needs {least}.")
    repeats = max(1, round(len(agreeing.fixed) / max(1, len(marks.fixed))))
    fixed, moving = (
        np.vstack([np.repeat(own, repeats, axis=0), others])
        for own, others in zip(marks, agreeing, strict=True)
    )
    return fitter(fixed, moving)


def _left_out(kind: str, marks: Landmarks, agreeing: Landmarks) -> np.ndarray:
    """Residual (N,) of each landmark in the fit to all other points, moving pixels."""
    residuals = np.full(len(marks.fixed), np.inf)
    for index in range(len(marks.fixed)):
        others = Landmarks(*(np.delete(points, index, axis=0) for points in marks))
        try:
            transform = _fit(kind, others, agreeing)
        except InputError:  # the others do not determine it: the residual stays infinite
            continue
        mapped = transform.map(marks.fixed[index : index + 1])[0]
        residuals[index] = np.linalg.norm(mapped - marks.moving[index])
    return residuals


def _warning(transform: Transform, marks: Landmarks) -> str:
    H = affine_of(transform, marks.fixed)
    if np.linalg.det(H[:2, :2]) <= 0:
        return "the landmarks mirror the image; two of them are probably exchanged"
    return ""


def compare_annotators(
    first: Landmarks, second: Landmarks, fixed_size: Size, moving_size: Size
) -> dict[str, Any]:
    """Inter-observer error of two sets of landmarks of one pair.

    Points of both sets that lie near each other in the fixed image are taken for the same
    structure. Their error is how differently the two place it in the moving image, after the
    difference in the fixed image is taken over by the transform. The transforms of both are
    compared at the fixed landmarks of both.

    Args:
        first, second: at least three landmarks each for the comparison of the transforms.
        fixed_size, moving_size: (height, width) of the images.

    Returns:
        ``n_same``, ``place_median`` and ``place_max`` of the same points, ``transform_median`` and
        ``transform_max``; None where they cannot be measured. Moving px at 512.
    """
    scale = to_reference_px(moving_size)
    result: dict[str, Any] = dict.fromkeys(
        ("place_median", "place_max", "transform_median", "transform_max")
    )
    result |= {"n_first": len(first.fixed), "n_second": len(second.fixed), "n_same": 0}
    enough = min(len(first.fixed), len(second.fixed)) >= MIN_LANDMARKS
    if not enough:
        return result
    transforms = [
        fit_landmarks(*marks, fixed_size, moving_size).transform for marks in (first, second)
    ]
    points = np.vstack([first.fixed, second.fixed])
    apart = np.linalg.norm(transforms[0].map(points) - transforms[1].map(points), axis=1) * scale
    result |= {"transform_median": float(np.median(apart)), "transform_max": float(apart.max())}
    pairs = _same_places(first.fixed, second.fixed, SAME_PLACE_PX * max(fixed_size) / 512.0)
    if len(pairs):
        a, b = pairs.T
        expected = transforms[0].map(second.fixed[b]) - transforms[0].map(first.fixed[a])
        error = second.moving[b] - first.moving[a] - expected
        distance = np.linalg.norm(error, axis=1) * scale
        result |= {
            "n_same": len(pairs),
            "place_median": float(np.median(distance)),
            "place_max": float(distance.max()),
        }
    return result


def _same_places(first: np.ndarray, second: np.ndarray, limit_px: float) -> np.ndarray:
    """Indices (K, 2) of points (N, 2) and (M, 2) that are each other's nearest within a limit."""
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    nearest, back = distances.argmin(axis=1), distances.argmin(axis=0)
    rows = np.arange(len(first))
    kept = (back[nearest] == rows) & (distances[rows, nearest] <= limit_px)
    return np.stack([rows[kept], nearest[kept]], axis=1)
