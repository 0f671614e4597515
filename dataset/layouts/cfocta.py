"""CF-OCTA pairs: ``CF_<part>/NNN*.png``, ``OCTA_<part>/NNNOCTA.png`` and one landmark file each.

``Ground_Truth_<part>/NNNFundus_OCTA_points.txt`` holds ``cf_x cf_y octa_x octa_y`` a line, both
images scaled to 256 x 256 px whatever their size. The photograph is the fixed image.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataset.real_pair_files import Layout, RealPairFiles
from utils.errors import InputError
from utils.image_files import IMAGE_SUFFIXES

LANDMARK_SIZE = (256, 256)  # (height, width) that both images have in the landmark files, pixels
LANDMARK_FOLDER, FIXED_FOLDER, MOVING_FOLDER = "Ground_Truth_", "CF_", "OCTA_"
LANDMARK_ENDING = "Fundus_OCTA_points.txt"


def recognise(root: Path) -> bool:
    """Whether ``root`` holds a folder of landmark files, or folders of both kinds of images."""
    kinds = (f"{LANDMARK_FOLDER}*",), (f"{FIXED_FOLDER}*", f"{MOVING_FOLDER}*")
    return any(all(any(root.glob(pattern)) for pattern in patterns) for patterns in kinds)


def find(root: Path, fixed_role: str) -> tuple[list[RealPairFiles], list[str]]:
    """See :class:`dataset.real_pair_files.Layout`; ``fixed_role`` has no effect here."""
    pairs: list[RealPairFiles] = []
    problems: list[str] = []
    for truth_folder in sorted(root.glob(f"{LANDMARK_FOLDER}*")):
        part = truth_folder.name.removeprefix(LANDMARK_FOLDER)
        for text in sorted(truth_folder.glob(f"*{LANDMARK_ENDING}")):
            number = text.name.removesuffix(LANDMARK_ENDING)
            try:
                fixed_path = _only_image(root, f"{FIXED_FOLDER}{part}", f"{number}*", text)
                moving_path = _only_image(root, f"{MOVING_FOLDER}{part}", f"{number}OCTA*", text)
            except InputError as error:
                problems.append(str(error))
                continue
            pairs.append(
                RealPairFiles(
                    name=f"{part}_{number}",
                    eye=number,
                    fixed_path=fixed_path,
                    moving_path=moving_path,
                    landmark_files=(text,),
                    landmark_size=LANDMARK_SIZE,
                    part=part,
                )
            )
    return pairs, problems


def find_unmarked(root: Path) -> list[RealPairFiles]:
    """See :class:`dataset.real_pair_files.Layout`.

    Raises:
        InputError: no OCTA image of a photograph, or several.
    """
    marked = {(files.part.lower(), files.eye) for files in find(root, "01")[0]}
    pairs = []
    for folder in sorted(root.glob(f"{FIXED_FOLDER}*")):
        part = folder.name.removeprefix(FIXED_FOLDER)
        for fixed_path in sorted(folder.iterdir()):
            digits = re.match(r"\d+", fixed_path.name)
            if digits is None or fixed_path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            number = digits[0]
            if (part.lower(), number) in marked:
                continue
            folder_name = f"{MOVING_FOLDER}{part}"
            moving_path = _only_image(root, folder_name, f"{number}OCTA*", fixed_path)
            name = f"{part}_{number}"
            pairs.append(RealPairFiles(name, number, fixed_path, moving_path, (), None, part))
    return pairs


def _only_image(root: Path, folder_name: str, pattern: str, text: Path) -> Path:
    """The one image of a pair in a folder.

    Folder names are compared without regard to capitals, which differ between releases of the data
    (``CF_ts`` beside ``Ground_Truth_Ts``).

    Raises:
        InputError: no image matches, or several do.
    """
    folders = [path for path in root.iterdir() if path.name.lower() == folder_name.lower()]
    prefix = pattern.split("*")[0]
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        # "1" is also a prefix of 10.png: no digit may follow the number.
        if path.name.startswith(prefix)
        and path.suffix.lower() in IMAGE_SUFFIXES
        and not path.stem[len(prefix) :][:1].isdigit()
    ]
    if len(found) != 1:
        raise InputError(
            f"{text}: {len(found)} images match {folder_name}/{pattern}; exactly one is needed."
        )
    return found[0]


LAYOUT = Layout(
    name="cfocta",
    expected_files="Ground_Truth_<part>/NNNFundus_OCTA_points.txt",
    recognise=recognise,
    find=find,
    find_unmarked=find_unmarked,
)
