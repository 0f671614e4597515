"""The folder of one pair: whose it is, and its removal."""

from __future__ import annotations

import json
import re
from pathlib import Path

from registration.pair_outputs import PAIR_FILES
from registration.pair_tables import absolute

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # names of utils.files.replace_atomically
MANUAL = "manual"  # "source" of a transform.json that was fitted to landmarks
UNREADABLE = ("", "")


def images_of_folder(folder: Path) -> tuple[str, str] | None:
    """Absolute paths of the images to which a folder belongs.

    Args:
        folder: of a pair.

    Returns:
        Paths of the fixed and of the moving image; ``UNREADABLE`` if the folder has files with
        names of results but no readable ``transform.json`` and further files too; None if nothing
        in it would be lost, or if there is no such folder.
    """
    if not folder.is_dir():
        return None
    try:
        content = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
        return absolute(content["fixed"]["path"]), absolute(content["moving"]["path"])
    except (OSError, ValueError, TypeError, KeyError):
        # Without this file the folder is that of a pair under way when its process was killed, if
        # nothing else lies in it.
        names = {path.name for path in folder.iterdir()}
        own = {name for name in names if name in PAIR_FILES or TEMPORARY.fullmatch(name)}
        return UNREADABLE if own and names - own else None


def is_manual(folder: Path) -> bool:
    """Whether a person made the transform of a folder, from landmarks (docs/review.md).

    Args:
        folder: of a pair; it need not exist.
    """
    try:
        content = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("source") == MANUAL


def clear_pair(folder: Path) -> None:
    """Remove the files of a pair, and what a killed process left of them.

    Args:
        folder: of the pair; removed too if nothing else lies in it.
    """
    if not folder.is_dir():
        return
    rest = False
    for path in folder.iterdir():
        if path.name in PAIR_FILES or TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
        else:
            rest = True
    if not rest:
        folder.rmdir()
