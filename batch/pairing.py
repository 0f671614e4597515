"""Pairs from two patterns of file names: by folder, or by named groups."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from registration.pair_tables import RESULT_COLUMNS, PairToRegister, absolute
from utils.errors import InputError

MAX_NAMED = 5  # files that a message names
GROUP = re.compile(r"\{(\w+)\}")
HINT = (
    "mark what the files of a pair have in common, as in --fixed 'cf/{eye}_*.png' --moving "
    "'fa/{eye}_*.png', or give a table with --pairs"
)
Key = tuple[str, ...]  # of a pair: its folder, or the values of its groups


def find_pairs(
    fixed_pattern: str, moving_pattern: str, skip_unpaired: bool = False
) -> list[PairToRegister]:
    """Pair the files of two patterns.

    ``*``, ``?``, ``[...]`` and ``**`` are those of glob; ``{name}`` is a named group: any
    characters but ``/``, which are the same in both files of a pair. Without groups the files of
    one folder belong together. Each moving image is paired with the one fixed image of its folder
    or group.

    Args:
        fixed_pattern, moving_pattern: of the files.
        skip_unpaired: leave files without a partner out.

    Returns:
        The pairs; their id is the value of the group ``id``, else "". Values of other groups are
        further columns.

    Raises:
        InputError: no files, files without a partner, or several fixed images for a moving one.
    """
    names = list(dict.fromkeys(GROUP.findall(fixed_pattern)))
    if set(names) != set(GROUP.findall(moving_pattern)):
        raise InputError(
            f"--fixed {fixed_pattern} --moving {moving_pattern}: both need the same groups in "
            "braces, or none."
        )
    taken = sorted({*names} & {*RESULT_COLUMNS} - {"id"})
    if taken:
        raise InputError(f"{{{taken[0]}}}: a column of the results has this name; choose another.")
    fixed = _files_by_key("--fixed", fixed_pattern, names)
    moving = _files_by_key("--moving", moving_pattern, names)
    _check_ambiguous(fixed, moving)
    if not skip_unpaired:
        _check_unpaired(fixed, moving)
    rows = []
    for key in fixed:
        extra = dict(zip(names, key, strict=False))
        name = extra.pop("id", "")
        paths = [path for path in moving.get(key, ()) if path != fixed[key][0]]
        for path in paths:
            # Several moving images of one id are named by their files.
            own = name if len(paths) == 1 else ""
            rows.append(PairToRegister(own, absolute(fixed[key][0]), absolute(path), extra))
    return rows


def _files_by_key(option: str, pattern: str, names: Sequence[str]) -> dict[Key, list[str]]:
    """The files of a pattern in alphabetical order, by folder or by the values of its groups.

    Raises:
        InputError: none.
    """
    found: dict[Key, list[str]] = defaultdict(list)
    expression = re.compile(_expression_of(pattern))
    for path in sorted(glob.glob(GROUP.sub("*", pattern), recursive=True)):
        match = expression.fullmatch(path.replace(os.sep, "/"))
        if match and os.path.isfile(path):
            key = tuple(match[name] for name in names) if names else (os.path.dirname(path),)
            found[key].append(path)
    if not found:
        raise InputError(
            f"{option} {pattern}: no such files; put the pattern in quotes, and check the folder."
        )
    return dict(found)


def _expression_of(pattern: str) -> str:
    """A glob pattern with groups as a regular expression; a repeated group has one value."""
    parts: list[str] = []
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\]|\{\w+\})", pattern.replace(os.sep, "/")):
        name = part[1:-1]
        if part == "**/":
            parts.append("(?:[^/]+/)*")
        elif part in ("*", "**", "?"):
            parts.append("[^/]" + ("" if part == "?" else "*"))
        elif GROUP.fullmatch(part):
            seen = f"(?P<{name}>[^/]+?)" in parts
            parts.append(f"(?P={name})" if seen else f"(?P<{name}>[^/]+?)")
        elif part.startswith("[") and part.endswith("]"):
            parts.append(f"[^{name[1:]}]" if name.startswith("!") else part)
        else:
            parts.append(re.escape(part))
    return "".join(parts)


def _check_ambiguous(fixed: Mapping[Key, list[str]], moving: Mapping[Key, list[str]]) -> None:
    for key, paths in fixed.items():
        if len(paths) > 1 and key in moving:
            raise InputError(
                f"{_named(paths)}: {len(paths)} fixed images for {_named(moving[key])}; {HINT}."
            )


def _check_unpaired(fixed: Mapping[Key, list[str]], moving: Mapping[Key, list[str]]) -> None:
    lonely = [path for key in fixed.keys() - moving.keys() for path in fixed[key]]
    lonely += [path for key in moving.keys() - fixed.keys() for path in moving[key]]
    lonely += [
        path for key in moving.keys() & fixed.keys() for path in _only_itself(fixed, moving, key)
    ]
    if lonely:
        raise InputError(
            f"{_named(sorted(lonely))}: without a partner; give --skip_unpaired to leave them out, "
            f"or {HINT}."
        )


def _only_itself(
    fixed: Mapping[Key, list[str]], moving: Mapping[Key, list[str]], key: Key
) -> list[str]:
    """A fixed image whose only partner is the same file, which both patterns have matched."""
    return moving[key] if moving[key] == fixed[key][:1] else []


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - MAX_NAMED
    return ", ".join(paths[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def describe_pairs(rows: Sequence[PairToRegister], n_shown: int = 20) -> str:
    """The pairing as lines of text: id, fixed image, moving image.

    Args:
        rows: the pairs.
        n_shown: number of pairs that are written out.
    """
    lines = [f"{len(rows)} pairs (id: fixed <- moving)"]
    for row in rows[:n_shown]:
        names = [os.path.relpath(path) for path in (row.fixed, row.moving)]
        lines.append(f"  {row.id + ': ' if row.id else ''}{names[0]} <- {names[1]}")
    if len(rows) > n_shown:
        lines.append(f"  ... and {len(rows) - n_shown} more")
    return "\n".join(lines)
