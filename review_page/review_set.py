"""What is reviewed: the pairs of a results folder, or of a data set of real pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch.pair_folder import MANUAL
from dataset.layouts import LAYOUT_BY_NAME, recognise_layout
from dataset.real_pair_files import RealPairFiles
from dataset.real_pairs import find_pairs
from geometry.matrices import Size
from registration.pair_tables import RESULTS_NAME, with_formula
from utils.errors import InputError
from utils.image_files import IMAGE_SUFFIXES
from utils.names import is_plain_name
from utils.tables import read_table

TRANSFORM_NAME = "transform.json"
REVIEW_FOLDER = "review"  # in a data set, for what the page writes
# Landmark files of a pair in a results folder; 01 is the fixed image.
LANDMARK_NAMES = ("001_01.txt", "001_02.txt")
MAX_JSON_BYTES = 64 << 20  # larger transform.json are refused


@dataclass(frozen=True)
class ReviewItem:
    """One pair.

    Attributes:
        id: unique in its set.
        status: "ok", "failed", or "none" for a pair that was not registered.
        source: "automatic", "manual" (landmarks), or "" without a transform.
        confidence: [0, 1]; None where there is none.
        kind: of the transform, such as "affine"; "" without one.
        reason: why it failed, or why it cannot be shown.
        fixed, moving: images; None where they are unknown.
        folder: of the pair's ``transform.json`` and pictures; None where the id is no folder name.
        landmark_files: where its landmarks are read and written, two files, or one with four
            columns.
        landmark_size: see :class:`dataset.real_pair_files.RealPairFiles`.
        has_landmarks: whether these files exist.
    """

    id: str
    status: str
    source: str
    confidence: float | None
    kind: str
    reason: str
    fixed: Path | None
    moving: Path | None
    folder: Path | None
    landmark_files: tuple[Path, ...]
    landmark_size: Size | None = None
    has_landmarks: bool = False

    @property
    def transform_path(self) -> Path | None:
        """Its ``transform.json``, which may be absent."""
        return None if self.folder is None else self.folder / TRANSFORM_NAME

    def summary(self) -> dict[str, Any]:
        """What the list of pairs shows; plain values for JSON."""
        return {
            "id": self.id,
            "status": self.status,
            "source": self.source,
            "confidence": self.confidence,
            "kind": self.kind,
            "reason": self.reason,
            "landmarks": self.has_landmarks,
            "openable": self.fixed is not None and self.moving is not None,
        }


@dataclass(frozen=True)
class ReviewOptions:
    """How a folder is read.

    Attributes:
        layout, fixed_role: see :func:`dataset.real_pairs.find_pairs`.
        images: folders to which the images are confined, and in which images that moved are
            looked for by name; empty takes the paths of the results.
        landmarks: folder of the landmarks of one annotator, with the paths of the set; None keeps
            them beside the images.
    """

    layout: str = "auto"
    fixed_role: str = "01"
    images: tuple[Path, ...] = ()
    landmarks: Path | None = None


@dataclass
class ReviewSet:
    """The pairs of a folder.

    Attributes:
        root: the folder that was given.
        out: folder of ``review.csv`` and of the folders of the pairs.
        of_results: whether ``register.py`` wrote the folder; otherwise it is a data set.
        options: how it is read.
        items: the pairs by id, in the order of the table.
        problems: one line for everything that cannot be shown.
    """

    root: Path
    out: Path
    of_results: bool
    options: ReviewOptions = field(default_factory=ReviewOptions)
    items: dict[str, ReviewItem] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _seen: tuple[Any, ...] = ()

    def refresh(self) -> None:
        """Read the folder again if its table has changed; a batch may still be running.

        Raises:
            InputError: an unreadable table, or no pair at all.
        """
        table = self.root / RESULTS_NAME
        seen: tuple[Any, ...] = (
            (table.stat().st_mtime_ns, table.stat().st_size)
            if (self.of_results and table.is_file())
            else ()
        )
        if self.items and seen == self._seen:
            return
        problems: list[str] = []
        read = _read_results if self.of_results else _read_data_set
        self.items = {item.id: item for item in read(self, problems)}
        self.problems, self._seen = problems, seen

    def item(self, identity: str) -> ReviewItem:
        """The pair of an id.

        Args:
            identity: as in :attr:`items`.

        Raises:
            InputError: no such pair.
        """
        if identity not in self.items:
            raise InputError(f"{self.root}: has no pair {identity!r}; load the page again.")
        return self.items[identity]

    def reload_item(self, identity: str) -> ReviewItem:
        """The pair after its transform or its landmarks were written.

        Args:
            identity: id of the pair.
        """
        old = self.item(identity)
        new = _with_transform_of(old, old.status, old.reason, old.confidence, self)
        self.items[identity] = new
        return new


def open_review_set(root: str | Path, options: ReviewOptions | None = None) -> ReviewSet:
    """Open a results folder, or a data set of real pairs.

    Args:
        root: of either kind; a folder with ``results.csv``, or whose folders hold
            ``transform.json``, is a results folder.
        options: how it is read.

    Raises:
        InputError: missing folder, or one that holds neither.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give --out of register.py, or a data set.")
    of_results = (root / RESULTS_NAME).is_file() or (
        recognise_layout(root) is None and any(root.glob(f"*/{TRANSFORM_NAME}"))
    )
    out = root if of_results else root / REVIEW_FOLDER
    found = ReviewSet(root, out, of_results, options or ReviewOptions())
    found.refresh()
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.

    Raises:
        InputError: missing, unreadable or foreign file.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MB.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); register the pair again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a transform.json; register the pair again.")
    return content


def is_inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path, its links followed, lies in one of the folders.

    Args:
        path: of a file, which need not exist.
        folders: that are allowed.
    """
    resolved = path.resolve()
    return any(resolved.is_relative_to(folder.resolve()) for folder in folders)


def _read_results(review: ReviewSet, problems: list[str]) -> list[ReviewItem]:
    """The pairs of a folder that register.py wrote, in the order of its table."""
    table = review.root / RESULTS_NAME
    if table.is_file():
        cells, _ = read_table(table, ["id", "status"])
        rows = [{name: with_formula(cell) for name, cell in row.items()} for row in cells]
    else:
        rows = [
            {"id": path.parent.name} for path in sorted(review.root.glob(f"*/{TRANSFORM_NAME}"))
        ]
    items: dict[str, ReviewItem] = {}
    for row in rows:
        if row["id"] in items:
            problems.append(f"{table}: the id {row['id']} occurs twice; its first row is shown.")
        else:
            items[row["id"]] = _item_of_row(review, row)
    return list(items.values())


def _item_of_row(review: ReviewSet, row: Mapping[str, str]) -> ReviewItem:
    folder: Path | None = review.root / row["id"] if is_plain_name(row["id"]) else None
    if folder is not None and not is_inside(folder, [review.root]):
        folder = None
    base = review.options.landmarks or review.root
    files = () if folder is None else tuple(base / row["id"] / name for name in LANDMARK_NAMES)
    item = ReviewItem(
        id=row["id"],
        status=row.get("status", "none"),
        source="",
        confidence=None,
        kind="",
        reason=row.get("reason", ""),
        fixed=_locate_image(review, row.get("fixed")),
        moving=_locate_image(review, row.get("moving")),
        folder=folder,
        landmark_files=files,
    )
    return _with_transform_of(
        item, item.status, item.reason, _as_confidence(row.get("confidence")), review
    )


def _with_transform_of(
    item: ReviewItem, status: str, reason: str, confidence: float | None, review: ReviewSet
) -> ReviewItem:
    """The item with what its ``transform.json`` and its landmark files say."""
    content: dict[str, Any] = {}
    path = item.transform_path
    if path is not None and path.is_file():
        try:
            content = read_json(path)
        except InputError as error:
            status, reason = "failed", str(error)
    fixed, moving = item.fixed, item.moving
    if review.of_results:
        fixed = _locate_image(review, _path_in(content, "fixed")) or fixed
        moving = _locate_image(review, _path_in(content, "moving")) or moving
    manual = content.get("source") == MANUAL
    if content:
        status = str(content.get("status", status))
        confidence = None if manual else _as_confidence(content.get("confidence"))
        reason = str(content.get("reason") or "")
    if review.of_results and (fixed is None or moving is None) and not reason:
        reason = "the images of this pair are not found; give their folder with --images"
    has_transform = status == "ok"
    return ReviewItem(
        id=item.id,
        status=status,
        source="" if not has_transform else MANUAL if manual else "automatic",
        confidence=confidence,
        kind=str(content.get("transform") or "") if has_transform else "",
        reason=reason,
        fixed=fixed,
        moving=moving,
        folder=item.folder,
        landmark_files=item.landmark_files,
        landmark_size=item.landmark_size,
        has_landmarks=bool(item.landmark_files)
        and all(path.is_file() for path in item.landmark_files),
    )


def _path_in(content: Mapping[str, Any], role: str) -> str | None:
    entry = content.get(role)
    path = entry.get("path") if isinstance(entry, dict) else None
    return path if isinstance(path, str) else None


def _as_confidence(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _locate_image(review: ReviewSet, value: str | None) -> Path | None:
    """An image that the results name; None if it is not found where images may be read."""
    if not value or "\0" in value or Path(value).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    path = Path(value)
    places = [path, review.root / path, review.root.parent / path]
    folders = review.options.images
    for folder in folders:
        # Images that were moved: the end of the path is the same.
        places += [folder.joinpath(*path.parts[-n:]) for n in range(1, len(path.parts) + 1)][::-1]
    for place in places:
        if place.is_file() and (not folders or is_inside(place, [review.root, *folders])):
            return place
    return None


def _read_data_set(review: ReviewSet, problems: list[str]) -> list[ReviewItem]:
    """The pairs of a data set, with landmarks and without."""
    options = review.options
    pairs, found_problems = find_pairs(review.root, options.layout, options.fixed_role)
    layout = (
        recognise_layout(review.root)
        if options.layout == "auto"
        else LAYOUT_BY_NAME[options.layout]
    )
    unmarked = layout.find_unmarked(review.root) if layout is not None else []
    problems += found_problems
    items: dict[str, ReviewItem] = {}
    for files in [*pairs, *unmarked]:
        items.setdefault(files.name, _item_of_files(review, files))
    return list(items.values())


def _item_of_files(review: ReviewSet, files: RealPairFiles) -> ReviewItem:
    folder = review.out / files.name if is_plain_name(files.name) else None
    paths, size = files.landmark_files, files.landmark_size
    if review.options.landmarks is not None and paths:
        paths = tuple(review.options.landmarks / path.relative_to(review.root) for path in paths)
    if not paths and folder is not None:
        # A layout whose pairs without landmarks have no place for them.
        paths, size = tuple(folder / name for name in LANDMARK_NAMES), None
    item = ReviewItem(
        id=files.name,
        status="none",
        source="",
        confidence=None,
        kind="",
        reason="",
        fixed=files.fixed_path,
        moving=files.moving_path,
        folder=folder,
        landmark_files=paths,
        landmark_size=size,
    )
    return _with_transform_of(item, "none", "", None, review)
