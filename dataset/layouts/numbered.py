"""Numbered pairs: ``root/<eye>_<k>/NNN_01.png, NNN_02.png, NNN_01.txt, NNN_02.txt``.

Each text file holds one ``x y`` a line in the pixels of its own image; line i of both is the same
point. Which of 01 and 02 is the fixed image is a setting (``fixed_role``), never guessed.
"""

from __future__ import annotations

from pathlib import Path

from dataset.real_pair_files import FIXED_ROLES, Layout, RealPairFiles
from utils.image_files import IMAGE_SUFFIXES

ROLE_ENDINGS = tuple(f"_{role}" for role in FIXED_ROLES)


def recognise(root: Path) -> bool:
    """Whether a folder below ``root`` holds a file whose stem ends with a role."""
    return any(
        path.stem.endswith(ROLE_ENDINGS)
        for folder in root.iterdir()
        if folder.is_dir()
        for path in folder.iterdir()
    )


def find(root: Path, fixed_role: str) -> tuple[list[RealPairFiles], list[str]]:
    """See :class:`dataset.real_pair_files.Layout`."""
    pairs: list[RealPairFiles] = []
    problems: list[str] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = [
            path
            for path in sorted(folder.iterdir())
            if path.stem[-3:] in ROLE_ENDINGS and path.suffix.lower() in IMAGE_SUFFIXES
        ]
        for number in sorted({path.stem[:-3] for path in images}):
            found = _pair_of(folder, images, number, fixed_role)
            if isinstance(found, str):
                problems.append(found)
            else:
                pairs.append(found)
    return pairs, problems


def _pair_of(folder: Path, images: list[Path], number: str, fixed_role: str) -> RealPairFiles | str:
    """The pair of a number, or a line that names the missing or surplus images."""
    moving_role = next(role for role in FIXED_ROLES if role != fixed_role)
    fixed, moving = (
        [path for path in images if path.stem == f"{number}_{role}"]
        for role in (fixed_role, moving_role)
    )
    if len(fixed) != 1 or len(moving) != 1:
        return (
            f"{folder}: {len(fixed)} images {number}_{fixed_role} and {len(moving)} images "
            f"{number}_{moving_role}; exactly one of each is needed, so add or remove files "
            f"({number}_{moving_role if fixed else fixed_role}.png)."
        )
    return RealPairFiles(
        name=f"{folder.name}_{number}",
        eye=folder.name.split("_")[0],
        fixed_path=fixed[0],
        moving_path=moving[0],
        landmark_files=(
            folder / f"{number}_{fixed_role}.txt",
            folder / f"{number}_{moving_role}.txt",
        ),
    )


LAYOUT = Layout(
    name="numbered",
    expected_files="<eye>_<k>/NNN_01.png with NNN_02.png and a .txt each",
    recognise=recognise,
    find=find,
)
