"""What the server works on: the pairs, their images and transforms, and the judgements."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dataset.reviews import REVIEW_NAME
from geometry.matrices import Size
from geometry.transforms import Transform
from review_page.pair_data import (
    PairMatches,
    landmarks_version,
    read_landmarks,
    saved_matches,
    saved_transform,
    transform_digest,
)
from review_page.rendering import (
    THUMBNAIL_PX,
    Images,
    Pyramid,
    draw_thumbnail,
    encode_jpeg,
    plain_tile,
    registered_tile,
    small,
)
from review_page.review_set import ReviewItem, ReviewSet
from review_page.verdicts import VerdictStore
from utils.errors import InputError

if TYPE_CHECKING:
    from registration.registrar import Registrar

LATTICE_POINTS = 33  # along each side of the fixed image, of the map that links the cursors
MAX_TRANSFORMS = 256  # kept for tiles
GREEN = 1  # channel with most vessel contrast


class OpenPair(NamedTuple):
    """A pair whose images are read.

    Attributes:
        item: the pair.
        fixed, moving: its images.
    """

    item: ReviewItem
    fixed: Pyramid
    moving: Pyramid

    @property
    def sizes(self) -> tuple[Size, Size]:
        """(height, width) of the fixed and of the moving image."""
        return self.fixed.size, self.moving.size


class Workspace:
    """Everything that requests share.

    Args:
        review: the pairs.
        weights: checkpoint for pairs that are registered on request; None for the shipped one.
        second: folder of a second annotator's landmarks; None without.
    """

    def __init__(
        self, review: ReviewSet, weights: Path | None = None, second: Path | None = None
    ) -> None:
        self.review, self.second = review, second
        self.images = Images()
        self.verdicts = VerdictStore(review.out / REVIEW_NAME)
        self._weights = weights
        self._registrar: Registrar | None = None
        self._registering = threading.Lock()
        self._lock = threading.Lock()
        self._transforms: OrderedDict[str, Transform] = OrderedDict()
        self._registered: dict[str, tuple[Transform | None, PairMatches]] = {}

    def list_pairs(self) -> dict[str, Any]:
        """All pairs and judgements, for the list."""
        with self._lock:
            self.review.refresh()
        return {
            "root": str(self.review.root),
            "kind": "results" if self.review.of_results else "data set",
            "problems": self.review.problems,
            "pairs": [item.summary() for item in self.review.items.values()],
            "verdicts": self.list_verdicts(),
        }

    def list_verdicts(self) -> dict[str, list[str]]:
        """Verdict and note by the id of the pair."""
        return {identity: list(verdict) for identity, verdict in self.verdicts.read().items()}

    def open(self, identity: str) -> OpenPair:
        """Read the images of a pair, both at once.

        Args:
            identity: id of the pair.

        Raises:
            InputError: unknown pair, or an image that cannot be read.
        """
        item = self.review.item(identity)
        if item.fixed is None or item.moving is None:
            raise InputError(f"{identity}: {item.reason or 'its images are not found'}.")
        for path in (item.fixed, item.moving):
            if not path.is_file():
                raise InputError(f"{path}: no such image file; it was there before.")
        found: list[Pyramid | InputError] = []

        def read_fixed(path: Path = item.fixed) -> None:
            try:
                found.append(self.images.pyramid(path))
            except InputError as error:
                found.append(error)

        beside = threading.Thread(target=read_fixed)
        beside.start()
        try:
            moving = self.images.pyramid(item.moving)
        finally:
            beside.join()
        if isinstance(found[0], InputError):
            raise found[0]
        return OpenPair(item, found[0], moving)

    def current_transform(self, pair: OpenPair) -> Transform | None:
        """The saved transform, or that of a registration on request; None without.

        Args:
            pair: whose transform is asked for.
        """
        saved = saved_transform(pair.item, *pair.sizes)
        if saved is None and pair.item.id in self._registered:
            return self._registered[pair.item.id][0]
        return saved

    def keep_transform(self, transform: Transform) -> str:
        """Keep a transform for tiles.

        Args:
            transform: fixed pixels to moving pixels.

        Returns:
            Its name in the address of a tile.
        """
        name = transform_digest(transform)
        with self._lock:
            self._transforms[name] = transform
            self._transforms.move_to_end(name)
            while len(self._transforms) > MAX_TRANSFORMS:
                self._transforms.popitem(last=False)
        return name

    def describe_transform(self, transform: Transform, fixed_size: Size) -> dict[str, Any]:
        """What the page needs of a transform.

        Args:
            transform: fixed pixels to moving pixels.
            fixed_size: (height, width) of the fixed image.

        Returns:
            Its name for tiles, kind and approximate matrix, and where a lattice over the fixed
            image is mapped to.
        """
        height, width = fixed_size
        xs, ys = (
            np.linspace(0, width - 1, LATTICE_POINTS),
            np.linspace(0, height - 1, LATTICE_POINTS),
        )
        lattice = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
        mapped = np.nan_to_num(transform.map(lattice))
        H = transform.approximate_matrix()
        return {
            "name": self.keep_transform(transform),
            "kind": transform.kind,
            "matrix": H.tolist(),
            "lattice": np.round(mapped, 3).tolist(),
            "side": LATTICE_POINTS,
        }

    def describe_pair(self, identity: str) -> dict[str, Any]:
        """Everything about a pair but its pixels, for the page that shows it.

        Args:
            identity: id of the pair.

        Raises:
            InputError: an image, a transform or landmarks that cannot be read.
        """
        pair = self.open(identity)
        item, (fixed_size, moving_size) = pair.item, pair.sizes
        transform = self.current_transform(pair)
        matches = self.matches(item)
        marks = read_landmarks(item.landmark_files, item.landmark_size, fixed_size, moving_size)
        return {
            **item.summary(),
            "fixed": _describe_image(item.fixed, fixed_size),
            "moving": _describe_image(item.moving, moving_size),
            "transform": None
            if transform is None
            else self.describe_transform(transform, fixed_size),
            "matches": None
            if matches is None
            else {
                "fixed": np.round(matches.fixed, 2).tolist(),
                "moving": np.round(matches.moving, 2).tolist(),
                "inliers": matches.inliers.tolist(),
            },
            "landmarks": {"fixed": marks.fixed.tolist(), "moving": marks.moving.tolist()},
            "version": landmarks_version(item.landmark_files),
            "saves_to": [str(path) for path in (*item.landmark_files, item.transform_path) if path],
        }

    def matches(self, item: ReviewItem) -> PairMatches | None:
        """The matches of a pair, of its files or of a registration on request.

        Args:
            item: the pair.
        """
        saved = saved_matches(item.folder)
        if saved is None and item.id in self._registered:
            return self._registered[item.id][1]
        return saved

    def tile(
        self, identity: str, layer: str, name: str, place: tuple[int, int, int], green: bool
    ) -> bytes | None:
        """A tile as JPEG.

        Args:
            identity: id of the pair.
            layer: "fixed", "moving" or "registered".
            name: of the transform of the registered layer.
            place: level, column and row.
            green: whether to show the green channel as grey.

        Returns:
            None beyond the image.

        Raises:
            InputError: unknown layer or transform.
        """
        pair = self.open(identity)
        if layer == "registered":
            image = registered_tile(
                pair.moving, self.transform_named(name, pair), pair.fixed.size, *place
            )
        elif layer in ("fixed", "moving"):
            image = plain_tile(pair.fixed if layer == "fixed" else pair.moving, *place)
        else:
            raise InputError(f"no layer {layer!r}; there are fixed, moving and registered.")
        if image is None:
            return None
        if green:
            image = np.repeat(image[..., GREEN, None], 3, axis=2)
        return encode_jpeg(np.ascontiguousarray(image))

    def transform_named(self, name: str, pair: OpenPair) -> Transform:
        """A transform that was described to the page.

        Args:
            name: from :meth:`describe_transform`.
            pair: whose current transform has this name if it is no longer kept.

        Raises:
            InputError: neither kept nor current.
        """
        with self._lock:
            kept = self._transforms.get(name)
        if kept is not None:
            return kept
        current = self.current_transform(pair)
        if current is None or self.keep_transform(current) != name:
            raise InputError("this transform is no longer kept; open the pair again.")
        return current

    def thumbnail(self, identity: str) -> bytes:
        """The checkerboard of a pair, or both images side by side, as JPEG.

        The picture that register.py wrote is used if it is up to date: it is faster to read.

        Args:
            identity: id of the pair.

        Raises:
            InputError: an image that cannot be read.
        """
        item = self.review.item(identity)
        drawn = None if item.folder is None else item.folder / "checkerboard.png"
        if item.status == "ok" and drawn is not None and drawn.is_file():
            path = drawn
            key = (identity, path, path.stat().st_mtime_ns)
            return self.images.thumbnail(
                key, lambda: small(self.images.pyramid(path), THUMBNAIL_PX)
            )
        stamp = None if item.transform_path is None else _stamp(item.transform_path)
        key_now = (identity, stamp, landmarks_version(item.landmark_files))

        def draw() -> np.ndarray:
            pair = self.open(identity)
            return draw_thumbnail(pair.fixed, pair.moving, self.current_transform(pair))

        return self.images.thumbnail(key_now, draw)

    def register(self, identity: str) -> dict[str, Any]:
        """Register a pair now, for its matches or because it has no transform; nothing is saved.

        Args:
            identity: id of the pair.

        Raises:
            InputError: an image that cannot be used, or missing weights.
        """
        # Imported here because it takes seconds and most reviews do not need it.
        from registration.registrar import Registrar  # noqa: PLC0415

        pair = self.open(identity)
        assert pair.item.fixed is not None and pair.item.moving is not None
        with self._registering:
            if self._registrar is None:
                self._registrar = Registrar(self._weights)
            result = self._registrar.register(pair.item.fixed, pair.item.moving)
        self._registered[identity] = (result.transform, PairMatches(*result.matches))
        description = self.describe_pair(identity)
        return {**description, "status_now": result.status, "reason_now": result.reason}


def _describe_image(path: Path | None, size: Size) -> dict[str, Any]:
    assert path is not None
    return {
        "name": path.name,
        "height": size[0],
        "width": size[1],
        "version": str(path.stat().st_mtime_ns),
    }


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None
