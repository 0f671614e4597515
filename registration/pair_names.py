"""Ids of pairs that are given without one: as much of the paths as tells the pairs apart."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from registration.pair_tables import PairToRegister
from utils.names import is_plain_name
from utils.stored_image import split_selector

MAX_PART = 48  # characters of one file or folder name in an id
MAX_NAME = 150  # bytes of an id in UTF-8; longer ones end with a checksum of the paths
MAX_PARENTS = 12  # folders above the files that are tried before the checksum of the paths

Paths = tuple[str, str]  # of the fixed and of the moving image


def pair_name(fixed: str, moving: str, parents: int = 0) -> str:
    """Id of a pair: both file names after some folders above them, in valid characters.

    Args:
        fixed, moving: paths of the images.
        parents: number of folders; they are named once if they are the same.
    """
    fixed_parts, moving_parts = (
        (Path(path).parts[-1 - parents : -1], _stem(path)) for path in (fixed, moving)
    )
    parts = [*fixed_parts[0], fixed_parts[1]]
    if moving_parts[0] != fixed_parts[0]:
        parts += moving_parts[0]
    parts.append(moving_parts[1])
    words = [re.sub(r"[^\w-]+", "_", part).strip("_")[:MAX_PART] for part in parts]
    name = "_".join(word for word in words if word) or "pair"
    if len(name.encode()) > MAX_NAME or not is_plain_name(name):
        start = name.encode()[: MAX_NAME - 12].decode(errors="ignore").strip(" .")
        return f"{start}-{_checksum(fixed, moving)}"
    return name


def _stem(path: str) -> str:
    """Name of a file without its suffix, with the frame of it that is asked for."""
    file, selector = split_selector(path)
    return f"{file.stem}_{selector}" if selector else file.stem


def _checksum(fixed: str, moving: str) -> str:
    return hashlib.sha256(f"{fixed}\0{moving}".encode(errors="surrogatepass")).hexdigest()[:8]


def name_pairs(
    rows: Sequence[PairToRegister],
    known: Mapping[Paths, str],
    is_free: Callable[[str, Paths], bool],
) -> list[PairToRegister]:
    """Give an id to every pair that has none.

    Pairs whose files have the same names are told apart by the folders above them.

    Args:
        rows: the pairs.
        known: ids that pairs were given earlier; they keep them.
        is_free: whether a pair may have an id, with regard to the folders that exist.

    Returns:
        The pairs in the same order.
    """
    used = {row.id.casefold() for row in rows if row.id}
    unnamed = dict.fromkeys((row.fixed, row.moving) for row in rows if not row.id)
    names: dict[Paths, str] = {}
    for paths in unnamed:
        if paths in known and known[paths].casefold() not in used:
            names[paths] = known[paths]
            used.add(known[paths].casefold())
    waiting = [paths for paths in unnamed if paths not in names]
    for parents in range(MAX_PARENTS + 1):
        if waiting:
            candidates = {paths: pair_name(*paths, parents) for paths in waiting}
            found = _unique(candidates, used, is_free)
            names |= found
            used.update(name.casefold() for name in found.values())
            waiting = [paths for paths in waiting if paths not in found]
    for paths in waiting:
        names[paths] = f"{pair_name(*paths)}-{_checksum(*paths)}"
    return [row if row.id else row._replace(id=names[row.fixed, row.moving]) for row in rows]


def _unique(
    candidates: Mapping[Paths, str], used: set[str], is_free: Callable[[str, Paths], bool]
) -> dict[Paths, str]:
    """The candidates that no other pair has."""
    counts = Counter(_folded(candidates.values()))
    return {
        paths: name
        for paths, name in candidates.items()
        if counts[name.casefold()] == 1 and name.casefold() not in used and is_free(name, paths)
    }


def _folded(names: Iterable[str]) -> Iterable[str]:
    return (name.casefold() for name in names)
