"""List every problem of a data set at once, each with its remedy, before a night of training finds them one by one.

    python -m dataset.check ROOT                        # the layout is recognised: generated, numbered or cfocta
    python -m dataset.check ROOT --mode cffa cfoct      # of the generated layout: these modes only

Exit code 0 when nothing is wrong, 1 when there are problems. Notes name what is unusual but works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.real_pairs import FIXED_ROLES, RealPairFiles, find_pairs, load_pair
from dataset.samples import MODE_FILES, Sample, discover_samples, problems_between
from utils.errors import InputError, run_script
from utils.image_files import read_gray, read_mask, stores_more_than_8_bits

LAYOUTS = ("auto", "generated", "numbered", "cfocta")
MIN_EYES = 3


@dataclass
class Findings:
    """What a check found; a line that several samples share counts once.

    Attributes:
        problems: would stop a run, or be skipped in it; notes: unusual, but working. checked: samples looked at.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: int = 0

    def add(self, *problems: str) -> None:
        """Add problems that are not known yet."""
        self.problems += [
            problem for problem in dict.fromkeys(problems) if problem not in self.problems
        ]

    def attempt(self, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        """The result of ``read``, or None with its ``InputError`` added."""
        try:
            return read()
        except InputError as error:
            self.add(str(error))
            return None


def recognise_layout(root: Path) -> str:
    """Which of the layouts a folder has.

    Raises:
        InputError: missing folder, or none of them.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path.")
    if any(root.glob("Ground_Truth_*")):
        return "cfocta"
    folders = [path for path in root.iterdir() if path.is_dir()]
    if any(True for folder in folders for _ in folder.glob(f"{glob_safe(folder.name)}_*.png")):
        return "generated"
    if any(path.stem.endswith(("_01", "_02")) for folder in folders for path in folder.iterdir()):
        return "numbered"
    raise InputError(
        f"{root}: none of the layouts of README, 'Your own data', is recognised here; check the path, and that the "
        "files are named after their folder."
    )


def glob_safe(name: str) -> str:
    """A name as a pattern that matches itself only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def check_generated(root: Path, modes: list[str] | None) -> Findings:
    """Check a generated data set.

    Args:
        modes: those to be served; None checks every mode that at least one folder serves.
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
            f"{root}: no folder has all files of any mode; see README, 'Your own data', for their names."
        )
    eyes = {sample.eye for sample in samples}
    if 0 < len(eyes) < MIN_EYES:
        findings.add(
            f"{root}: only {len(eyes)} eyes; train, val and test need at least one each, so add eyes."
        )
    by_folder: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_folder.setdefault(sample.fixed.parent, []).append(sample)
    for group in tqdm(
        by_folder.values(), desc="check", unit="folder", leave=False, disable=len(by_folder) < 20
    ):
        _check_folder(group, findings)
    findings.notes += [
        f"{path}: ignored, because it is not named <num>_<letter>."
        for path in sorted(root.iterdir())
        if path.is_dir() and "_" not in path.name
    ]
    return findings


def _check_folder(group: list[Sample], findings: Findings) -> None:
    """All modes of one folder, each file read once."""
    readers = {
        path: reader
        for sample in group
        for path, reader in (
            (sample.fixed, read_gray),
            (sample.moving, read_gray),
            (sample.mask, read_mask),
        )
    }
    rasters = {
        path: findings.attempt(lambda path=path, reader=reader: reader(path))
        for path, reader in readers.items()
    }
    for sample in group:
        findings.checked += 1
        fixed, moving, mask = (rasters[path] for path in (sample.fixed, sample.moving, sample.mask))
        # Where the fixed image is at fault already (the OCT of cfoct in octfa), the others would all seem to be.
        named_already = any(line.startswith(f"{sample.fixed}:") for line in findings.problems)
        if fixed is None or moving is None or mask is None or named_already:
            continue
        findings.add(*problems_between(sample, fixed, moving, mask))
        if np.array_equal(fixed, moving):
            findings.add(
                f"{sample.moving}: the same picture as {sample.fixed.name}; put the moving image there."
            )
    findings.notes += _depth_notes([path for path in readers if rasters[path] is not None])


def check_real(root: Path, layout: str, fixed_role: str) -> Findings:
    """Check real pairs: numbered or CF-OCTA."""
    findings = Findings()
    pairs, problems = find_pairs(root, layout, fixed_role)
    findings.add(*problems)
    for files in tqdm(pairs, desc="check", unit="pair", leave=False, disable=len(pairs) < 20):
        _check_pair(files, findings)
    return findings


def _check_pair(files: RealPairFiles, findings: Findings) -> None:
    """Each file of a pair for itself, and then what they say together."""
    findings.checked += 1
    before = len(findings.problems)
    paths = (files.fixed_path, files.moving_path)
    images = [findings.attempt(lambda path=path: read_gray(path)) for path in paths]
    # The size matters for nothing here but the scale of the points.
    for text in files.texts:
        alone = files._replace(texts=(text, text) if len(files.texts) == 2 else (text,))
        findings.attempt(lambda alone=alone: alone.landmarks((256, 256), (256, 256))[0])
    if len(findings.problems) > before:
        return
    try:
        load_pair(files, "check")
    except InputError as error:
        findings.add(str(error))
    if images[0].shape == images[1].shape and np.array_equal(*images):
        findings.add(
            f"{files.moving_path}: the same picture as {files.fixed_path.name}; put the moving image there."
        )
    findings.notes += _depth_notes(list(paths))


def _depth_notes(paths: list[Path]) -> list[str]:
    return [
        f"{path}: more than 8 bits; read with its own range of values stretched to [0, 1]."
        for path in paths
        if stores_more_than_8_bits(path)
    ]


def check(
    root: str | Path, layout: str = "auto", modes: list[str] | None = None, fixed_role: str = "01"
) -> Findings:
    """Check a data set of any layout.

    Raises:
        InputError: no data set of that layout at all.
    """
    root = Path(root)
    layout = recognise_layout(root) if layout == "auto" else layout
    return (
        check_generated(root, modes)
        if layout == "generated"
        else check_real(root, layout, fixed_role)
    )


def main() -> None:
    """Print all problems and notes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--layout", default="auto", choices=LAYOUTS)
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=list(MODE_FILES),
        help="of the generated layout (default: all it serves)",
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
        f"{args.root}: {findings.checked} samples checked, {len(findings.problems)} problems, {len(findings.notes)} notes"
    )
    if findings.problems:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
