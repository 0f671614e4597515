"""What the page asks while landmarks are placed: a second place, a fit, and to save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from geometry.landmark_fits import FITTERS
from geometry.matrices import translation_matrix
from geometry.transforms import Transform
from review_page.fitting import (
    MIN_LANDMARKS,
    PageFit,
    compare_annotators,
    fit_page,
    provisional_transform,
)
from review_page.landmark_store import save_landmarks, write_pictures
from review_page.pair_data import Landmarks, read_landmarks
from review_page.rendering import BoundedCache
from review_page.review_set import LANDMARK_NAMES, ReviewItem
from review_page.snapping import RidgeImage, locate_partner, ridge_image, snap_to_junction
from review_page.workspace import OpenPair, Workspace
from utils.errors import InputError

MAX_LANDMARKS = 1000
MAX_COORDINATE = 1e6  # pixels
MAX_RIDGE_BYTES = 64 << 20  # of all ridge maps; about 50
SIDES = ("fixed", "moving")


class Annotator:
    """Answers the requests about landmarks.

    Args:
        workspace: pairs, images and transforms.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._ridges = BoundedCache(MAX_RIDGE_BYTES)

    def propose(self, body: dict[str, Any]) -> dict[str, Any]:
        """Snap a clicked point, and propose its place in the other image.

        Args:
            body: ``id``, ``side`` ("fixed" or "moving"), ``point``, ``snap``, ``transform`` (name
                of the current one, or null), ``marks`` (placed so far), and ``partner``: the point
                of the other image if this click gives its counterpart.

        Returns:
            ``point``, ``snapped``; ``other`` and ``other_snapped`` where a transform proposes it.

        Raises:
            InputError: unknown pair or side, or impossible points.
        """
        pair = self.workspace.open(_text(body, "id"))
        side, snap = _text(body, "side"), bool(body.get("snap", True))
        if side not in SIDES:
            raise InputError(f"no side {side!r}; there are fixed and moving.")
        point = _points([body.get("point")])[0]
        transform = self._transform(body, pair)
        if transform is not None and side == "moving":
            transform = transform.inverse()
        partner = body.get("partner")
        if partner is not None:
            return self._place_partner(pair, side, point, _points([partner])[0], transform, snap)
        own = self._ridge(pair, side)
        snapped = snap_to_junction(own, point) if snap else None
        found = point if snapped is None else snapped.point
        answer: dict[str, Any] = {
            "point": found.tolist(),
            "snapped": snapped is not None and snapped.found,
        }
        if transform is None:
            return answer
        expected = transform.map(found.reshape(1, 2))[0]
        located = locate_partner(own, self._ridge(pair, _other(side)), transform, found)
        other = located.point if snap else expected
        if not np.isfinite(other).all():
            return answer
        return {**answer, "other": other.tolist(), "other_snapped": snap and located.found}

    def _place_partner(
        self,
        pair: OpenPair,
        side: str,
        point: np.ndarray,
        partner: np.ndarray,
        transform: Transform | None,
        snap: bool,
    ) -> dict[str, Any]:
        """Snap the second click of a landmark near where it was made."""
        if not snap:
            return {"point": point.tolist(), "snapped": False}
        own = self._ridge(pair, side)
        if transform is None:
            found = snap_to_junction(own, point)
        else:
            # The transform, shifted so that it takes the partner to the click.
            to_side = transform.inverse()
            shift = point - to_side.map(partner.reshape(1, 2))[0]
            shifted = to_side.rescaled(np.eye(3), translation_matrix(shift))
            found = locate_partner(self._ridge(pair, _other(side)), own, shifted, partner)
        return {"point": found.point.tolist(), "snapped": found.found}

    def refine(self, body: dict[str, Any]) -> dict[str, Any]:
        """Look for the moving point of every landmark again, by the ridge maps.

        Args:
            body: ``id``, ``marks`` and the name of the ``transform``.

        Returns:
            ``moving`` points, and ``n_found``.

        Raises:
            InputError: unknown pair, or no transform.
        """
        pair = self.workspace.open(_text(body, "id"))
        transform, marks = self._transform(body, pair), _marks(body)
        if transform is None:
            raise InputError("without a transform there is no place to look at.")
        ridges = self._ridge(pair, "fixed"), self._ridge(pair, "moving")
        moving, n_found = marks.moving.copy(), 0
        for index, point in enumerate(marks.fixed):
            found = locate_partner(*ridges, transform, point)
            if found.found:
                moving[index] = found.point
                n_found += 1
        return {"moving": moving.tolist(), "n_found": n_found}

    def fit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Fit a transform to the landmarks.

        Args:
            body: ``id``, ``marks``, ``kind`` and ``with_matches``.

        Returns:
            Summary of the fit and its transform; without enough landmarks the transform that
            proposes further places.

        Raises:
            InputError: unknown pair or kind, or impossible points.
        """
        pair = self.workspace.open(_text(body, "id"))
        marks = _marks(body)
        answer: dict[str, Any] = {"fit": None, "transform": None, "observers": None}
        answer["observers"] = self._observers(pair, marks)
        if len(marks.fixed) < MIN_LANDMARKS:
            transform = self.workspace.current_transform(pair) or provisional_transform(marks)
        else:
            found = self._fit(pair, marks, body)
            answer["fit"], transform = found.summary(), found.transform
        if transform is not None:
            answer["transform"] = self.workspace.describe_transform(transform, pair.fixed.size)
        return answer

    def save(self, body: dict[str, Any]) -> dict[str, Any]:
        """Save the landmarks and their transform.

        Args:
            body: as of :meth:`fit`, and the ``version`` of the files that the page had read.

        Returns:
            The pair as it is now.

        Raises:
            InputError: as :meth:`fit`; landmarks outside of their image; or the files have changed.
        """
        identity = _text(body, "id")
        pair, marks = self.workspace.open(identity), _marks(body)
        for points, size in zip(marks, pair.sizes, strict=True):
            if (points < -0.5).any() or (points > np.array(size[::-1]) - 0.5).any():
                raise InputError("a landmark lies outside of its image; move or delete it.")
        found = self._fit(pair, marks, body) if len(marks.fixed) >= MIN_LANDMARKS else None
        save_landmarks(pair.item, marks, found, pair.sizes, _text(body, "version"))
        if found is not None and self.workspace.review.of_results and pair.item.folder is not None:
            write_pictures(pair.item.folder, pair.fixed, pair.moving, found)
        self.workspace.review.reload_item(identity)
        return self.workspace.describe_pair(identity)

    def _fit(self, pair: OpenPair, marks: Landmarks, body: dict[str, Any]) -> PageFit:
        matches = self.workspace.matches(pair.item) if body.get("with_matches") else None
        kind = body.get("kind", "auto")
        if kind not in ("auto", *FITTERS):
            raise InputError(f"no kind of transform {kind!r}.")
        return fit_page(marks, *pair.sizes, kind, matches)

    def _transform(self, body: dict[str, Any], pair: OpenPair) -> Transform | None:
        name = body.get("transform")
        if not isinstance(name, str):
            return None
        return self.workspace.transform_named(name, pair)

    def _ridge(self, pair: OpenPair, side: str) -> RidgeImage:
        path = pair.item.fixed if side == "fixed" else pair.item.moving
        pyramid = pair.fixed if side == "fixed" else pair.moving
        assert path is not None

        def make() -> tuple[RidgeImage, int]:
            found = ridge_image(pyramid)
            return found, found.strength.nbytes

        return self._ridges.get((path, path.stat().st_mtime_ns), make)

    def _observers(self, pair: OpenPair, marks: Landmarks) -> dict[str, Any] | None:
        """Comparison with the second annotator, and their landmarks; None without."""
        if self.workspace.second is None:
            return None
        second = second_landmarks(self.workspace.second, pair, self.workspace.review.root)
        if second is None:
            return None
        comparison = compare_annotators(marks, second, *pair.sizes)
        return {**comparison, "fixed": second.fixed.tolist(), "moving": second.moving.tolist()}


def second_landmarks(folder: Path, pair: OpenPair, root: Path) -> Landmarks | None:
    """The landmarks of a second annotator; None where there are none of this pair.

    Args:
        folder: of the second annotator, with the paths of the set, or a results folder.
        pair: whose landmarks are looked for.
        root: of the set.

    Raises:
        InputError: a damaged file.
    """
    item: ReviewItem = pair.item
    own = tuple(
        folder / path.relative_to(root) for path in item.landmark_files if path.is_relative_to(root)
    )
    beside = (
        ()
        if item.folder is None
        else tuple(folder / item.folder.name / name for name in LANDMARK_NAMES)
    )
    for paths, size in ((own, item.landmark_size), (beside, None)):
        found = read_landmarks(paths, size, *pair.sizes)
        if len(found.fixed):
            return found
    return None


def _other(side: str) -> str:
    return "moving" if side == "fixed" else "fixed"


def _marks(body: dict[str, Any]) -> Landmarks:
    marks = body.get("marks")
    if not isinstance(marks, dict):
        raise InputError("the request lacks the landmarks.")
    found = Landmarks(_points(marks.get("fixed")), _points(marks.get("moving")))
    if len(found.fixed) != len(found.moving):
        raise InputError("the numbers of fixed and moving landmarks differ.")
    return found


def _points(values: Any) -> np.ndarray:
    """Points (N, 2) of a request, checked."""
    try:
        points = np.array(values, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise InputError(f"points are pairs of numbers ({error}).") from error
    if len(points) > MAX_LANDMARKS:
        raise InputError(f"at most {MAX_LANDMARKS} landmarks a pair.")
    if not np.isfinite(points).all() or (np.abs(points) > MAX_COORDINATE).any():
        raise InputError("points are finite pixels of an image.")
    return points


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InputError(f"the request lacks the text {name!r}.")
    return value
