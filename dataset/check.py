"""List every problem of a data set at once, each with its remedy, before a training run meets them.

    python -m dataset.check ROOT                        # the layout is recognised
    python -m dataset.check ROOT --mode cffa cfoct      # generated layout: these modes only

Exit code 0 without problems, 1 with problems. Notes name what is unusual but works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.layouts import LAYOUT_BY_NAME, LAYOUTS
from dataset.real_pair_files import FIXED_ROLES, RealPairFiles
from dataset.real_pairs import find_pairs, load_pair
from dataset.samples import MODE_FILES, Sample, discover_samples, ignored_folders, problems_between
from dataset.split import MIN_EYES
from geometry.point_files import read_points
from utils.errors import InputError, run_script
from utils.image_files import read_gray, read_mask, stores_more_than_8_bits

GENERATED = "generated"


@dataclass
class Findings:
    """What a check found; a line that several samples share counts once.

    Attributes:
        problems: would stop a run, or make it skip a sample.
        notes: unusual, but working.
        checked: number of samples or pairs that were read.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: int = 0
    _known: set[str] = field(default_factory=set, repr=False)

    def add(self, *problems: str) -> None:
        """Add problems that are not in the list yet."""
        new = [problem for problem in dict.fromkeys(problems) if problem not in self._known]
        self.problems += new
        self._known.update(new)

    def attempt(self, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        """The image or points (H, W) of ``read``; None, and its error added, on ``InputError``."""
        try:
            return read()
        except InputError as error:
            self.add(str(error))
            return None


def recognise_any_layout(root: Path) -> str:
    """Name of the first layout, in alphabetical order, that recognises a folder.

    Args:
        root: folder of a data set.

    Returns:
        "generated" or the name of a layout of real pairs.

    Raises:
        InputError: missing folder, or no layout recognises it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path.")
    recognisers = {layout.name: layout.recognise for layout in LAYOUT_BY_NAME.values()}
    recognisers[GENERATED] = _is_generated
    for name in sorted(recognisers):
        if recognisers[name](root):
            return name
    raise InputError(
        f"{root}: none of the layouts of docs/data.md is recognised here; check the "
        "path, and that the files are named after their folder."
    )


def _is_generated(root: Path) -> bool:
    """Whether a folder below ``root`` holds a PNG file named after the folder."""
    return any(
        True
        for folder in root.iterdir()
        if folder.is_dir()
        for _ in folder.glob(f"{_literal_pattern(folder.name)}_*.png")
    )


def _literal_pattern(name: str) -> str:
    """A glob pattern that matches ``name`` only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def check_generated(root: Path, modes: Sequence[str] | None) -> Findings:
    """Check a generated data set.

    Args:
        root: folder of the data set.
        modes: modes of which every folder must have all files; None checks every mode of which at
            least one folder has them.
    """
    findings = Findings()
    samples: list[Sample] = []
    for mode in modes or MODE_FILES:
        try:
            found, lacking = discover_samples(root, [mode])
        except InputError as error:
            if modes:
                findings.add(str(error))
            continue
        samples += found
        findings.add(*(f"{line}; add the file, or leave the folder out." for line in lacking))
    if not samples:
        findings.add(
            f"{root}: no folder has all files of any mode; see docs/data.md for their names."
        )
    eyes = {sample.eye for sample in samples}
    if 0 < len(eyes) < MIN_EYES:
        findings.add(
            f"{root}: only {len(eyes)} eyes; train, val and test need at least one each, so add "
            "eyes."
        )
    by_folder: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_folder.setdefault(sample.fixed.parent, []).append(sample)
    for group in tqdm(
        by_folder.values(), desc="check", unit="folder", leave=False, disable=len(by_folder) < 20
    ):
        _check_folder(group, findings)
    findings.notes += ignored_folders(root)
    return findings


def _check_folder(group: list[Sample], findings: Findings) -> None:
    """Check the samples of one folder, one for each mode; each file is read once."""
    readers = {
        path: reader
        for sample in group
        for path, reader in (
            (sample.fixed, read_gray),
            (sample.moving, read_gray),
            (sample.mask, read_mask),
        )
    }
    before = len(findings.problems)
    rasters = {path: findings.attempt(partial(reader, path)) for path, reader in readers.items()}
    for sample in group:
        findings.checked += 1
        fixed, moving, mask = (rasters[path] for path in (sample.fixed, sample.moving, sample.mask))
        # A fault of the fixed image (the OCT of cfoct is fixed in octfa) would be reported once
        # more for every image that is compared with it.
        of_folder = findings.problems[before:]
        named_already = any(line.startswith(f"{sample.fixed}:") for line in of_folder)
        if fixed is None or moving is None or mask is None or named_already:
            continue
        findings.add(*problems_between(sample, fixed, moving, mask))
        if np.array_equal(fixed, moving):
            findings.add(_same_picture(sample.fixed, sample.moving))
    findings.notes += _depth_notes([path for path in readers if rasters[path] is not None])


def check_real(root: Path, layout: str, fixed_role: str) -> Findings:
    """Check real pairs.

    Args:
        root: folder of the pairs.
        layout: one of ``LAYOUTS``.
        fixed_role: "01" or "02", the fixed image of the numbered layout.

    Raises:
        InputError: no pair of that layout at all.
    """
    findings = Findings()
    pairs, problems = find_pairs(root, layout, fixed_role)
    findings.add(*problems)
    for files in tqdm(pairs, desc="check", unit="pair", leave=False, disable=len(pairs) < 20):
        _check_pair(files, findings)
    return findings


def _check_pair(files: RealPairFiles, findings: Findings) -> None:
    """Check each file of a pair by itself, then, if none has a problem, against each other."""
    findings.checked += 1
    before = len(findings.problems)
    fixed, moving = (
        findings.attempt(partial(read_gray, path)) for path in (files.fixed_path, files.moving_path)
    )
    for path in files.landmark_files:
        findings.attempt(partial(read_points, path, files.landmark_columns))
    if len(findings.problems) > before or fixed is None or moving is None:
        return
    try:
        load_pair(files, "check")
    except InputError as error:
        findings.add(str(error))
    if np.array_equal(fixed, moving):
        findings.add(_same_picture(files.fixed_path, files.moving_path))
    findings.notes += _depth_notes([files.fixed_path, files.moving_path])


def _same_picture(fixed: Path, moving: Path) -> str:
    return f"{moving}: the same picture as {fixed.name}; put the moving image there."


def _depth_notes(paths: list[Path]) -> list[str]:
    return [
        f"{path}: more than 8 bits; its own range of values is stretched to [0, 1]."
        for path in paths
        if stores_more_than_8_bits(path)
    ]


def check(
    root: str | Path,
    layout: str = "auto",
    modes: Sequence[str] | None = None,
    fixed_role: str = "01",
) -> Findings:
    """Check a data set of any layout.

    Args:
        root: folder of the data set.
        layout: "generated" or one of ``LAYOUTS``.
        modes: see :func:`check_generated`.
        fixed_role: "01" or "02", the fixed image of the numbered layout.

    Raises:
        InputError: missing folder, or no data set of that layout at all.
    """
    root = Path(root)
    layout = recognise_any_layout(root) if layout == "auto" else layout
    if layout == GENERATED:
        return check_generated(root, modes)
    return check_real(root, layout, fixed_role)


def main() -> None:
    """Print all problems and notes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--layout", default="auto", choices=(*LAYOUTS, GENERATED))
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=list(MODE_FILES),
        help="of the generated layout (default: all modes with files)",
    )
    parser.add_argument(
        "--fixed_role", default="01", choices=FIXED_ROLES, help="fixed image of the numbered layout"
    )
    args = parser.parse_args()
    findings = check(args.root, args.layout, args.mode, args.fixed_role)
    for line in findings.notes:
        print(f"note: {line}")
    for line in findings.problems:
        print(f"problem: {line}")
    print(
        f"{args.root}: {findings.checked} samples checked, {len(findings.problems)} problems, "
        f"{len(findings.notes)} notes"
    )
    if findings.problems:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
