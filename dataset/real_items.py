"""Real images to learn from: pairs with and without landmarks, and single images.

A root is one of

- a folder of pairs in a layout of ``dataset/layouts/``; pairs may lack their landmark files;
- a folder of single images, or of folders of them;
- a CSV table with the columns ``fixed,moving`` and, where wanted, ``id,eye,fixed_landmarks,
  moving_landmarks``; a row without ``moving`` is a single image. Paths are relative to the current
  folder, or else to the table.

Files are found here, not read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dataset.layouts import recognise_layout
from dataset.real_pair_files import ALL_PARTS, Layout, RealPairFiles
from dataset.real_pairs import choose_part
from dataset.view_sources import bytes_of_files
from utils.errors import InputError
from utils.image_files import IMAGE_SUFFIXES
from utils.names import is_plain_name
from utils.tables import locate, read_table

TABLE_SUFFIX = ".csv"
LANDMARK_COLUMNS = ("fixed_landmarks", "moving_landmarks")


@dataclass(frozen=True)
class RealItem:
    """A real pair, or a single image; its files are not yet read.

    Attributes:
        key: unique within a run and safe as a file name: ``<root>_<name>``.
        eye: ``<root>/<eye>``; items of one eye share it.
        root: name of the folder, or of the table without its ending.
        fixed: image; the only one of a single image.
        moving: image, None for a single image.
        landmarks: files of the pair with its landmarks; None without landmarks.
        n_bytes: size of all its files together when they were found.
    """

    key: str
    eye: str
    root: str
    fixed: Path
    moving: Path | None
    landmarks: RealPairFiles | None
    n_bytes: int

    @property
    def is_pair(self) -> bool:
        """Whether it has two images."""
        return self.moving is not None

    def files(self) -> list[Path]:
        """All its files."""
        images = [self.fixed] + ([] if self.moving is None else [self.moving])
        return images + (list(self.landmarks.landmark_files) if self.landmarks else [])


def find_real_items(
    root: str | Path, fixed_role: str = "01", part: str = ALL_PARTS
) -> list[RealItem]:
    """Find the real images of a root.

    Args:
        root: folder or table, see the module.
        fixed_role: "01" or "02", the fixed image of the numbered layout.
        part: of a set that is divided into parts.

    Raises:
        InputError: nothing there, an incomplete pair, or a name that occurs twice; the message
            names the file.
    """
    root = Path(root)
    name = root.stem if root.suffix.lower() == TABLE_SUFFIX else root.resolve().name
    if not is_plain_name(name):
        raise InputError(f"--real {root}: {name!r} names its images; rename it to a plain name.")
    if root.suffix.lower() == TABLE_SUFFIX:
        found = _of_table(root)
    elif not root.is_dir():
        raise InputError(f"--real {root}: no such folder, and no CSV table.")
    elif any(root.glob("*/*_seg*.png")):
        raise InputError(f"--real {root}: is generated data with vessel masks; give it to --data.")
    else:
        layout = recognise_layout(root)
        found = _of_layout(root, layout, fixed_role, part) if layout else _of_single_images(root)
    twice = [key for key, count in Counter(files.name for files, _ in found).items() if count > 1]
    if twice:
        raise InputError(f"--real {root}: the name {twice[0]} occurs twice; rename a file or id.")
    items = [_item(name, files, is_single) for files, is_single in found]
    _check_one_eye(root, items)
    return items


def _check_one_eye(root: Path, items: list[RealItem]) -> None:
    """Refuse an image that belongs to two eyes: it could be trained and tested on."""
    eye_of: dict[Path, str] = {}
    for item in items:
        for path in filter(None, (item.fixed, item.moving)):
            eye = eye_of.setdefault(path.resolve(), item.eye)
            if eye != item.eye:
                raise InputError(
                    f"--real {root}: {path} belongs to the eyes {eye} and {item.eye}, so it could "
                    "be trained and tested on; give both rows the same eye."
                )


def _item(root: str, files: RealPairFiles, is_single: bool) -> RealItem:
    item = RealItem(
        key=f"{root}_{files.name}",
        eye=f"{root}/{files.eye}",
        root=root,
        fixed=files.fixed_path,
        moving=None if is_single else files.moving_path,
        landmarks=files if files.landmark_files else None,
        n_bytes=0,
    )
    for path in item.files():
        if not path.is_file():
            raise InputError(f"{path}: no such file (of {item.key}); restore it or remove its row.")
    return RealItem(**vars(item) | {"n_bytes": bytes_of_files(item.files())})


# The pairs of a root, and whether each is a single image: then its moving image is its fixed one.
_Found = list[tuple[RealPairFiles, bool]]


def _of_layout(root: Path, layout: Layout, fixed_role: str, part: str) -> _Found:
    pairs, problems = layout.find(root, fixed_role)
    if problems:
        raise InputError(
            f"{problems[0]} If these are single images, name them otherwise than the images of "
            "pairs, or list them in a CSV table."
        )
    found: _Found = []
    for files in choose_part(root, [*pairs, *layout.find_unmarked(root)], part):
        there = [path for path in files.landmark_files if path.is_file()]
        if there and len(there) < len(files.landmark_files):
            absent = next(path for path in files.landmark_files if path not in there)
            raise InputError(
                f"{absent}: missing, but {there[0].name} is there; landmarks are needed for both "
                "images, or for none."
            )
        found.append((files if there else files._replace(landmark_files=()), False))
    return found


def _of_single_images(root: Path) -> _Found:
    paths = [
        path
        for path in sorted([*root.iterdir(), *root.glob("*/*")])
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    if not paths:
        raise InputError(
            f"--real {root}: holds no images, neither pairs of a known layout nor single images."
        )
    names = [_plain("_".join(path.relative_to(root).with_suffix("").parts)) for path in paths]
    return [
        (RealPairFiles(name, name, path, path, ()), True)
        for name, path in zip(names, paths, strict=True)
    ]


def _of_table(path: Path) -> _Found:
    rows, _ = read_table(path, ("fixed", "moving"), ("id", "eye", *LANDMARK_COLUMNS))
    if not rows:
        raise InputError(f"{path}: has no rows.")
    found: _Found = []
    for number, row in enumerate(rows, start=2):
        values = {
            name: locate(row.get(name, ""), path.parent)
            for name in ("fixed", "moving", *LANDMARK_COLUMNS)
        }
        given = [name for name in LANDMARK_COLUMNS if values[name]]
        if len(given) == 1 or (given and not values["moving"]) or not values["fixed"]:
            raise InputError(
                f"{path}, line {number}: give a fixed image, and landmarks of both images of a "
                "pair or of none."
            )
        fixed, is_single = Path(values["fixed"]), not values["moving"]
        moving = fixed if is_single else Path(values["moving"])
        stems = fixed.stem if is_single else f"{fixed.stem}_{moving.stem}"
        name = _plain(row.get("id", "").strip() or stems)
        files = tuple(Path(values[column]) for column in given)
        eye = row.get("eye", "").strip() or name
        found.append((RealPairFiles(name, eye, fixed, moving, files), is_single))
    return found


def _plain(name: str) -> str:
    """A name that is safe as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name)
