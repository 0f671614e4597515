"""Turn registered pairs into training data: aligned folders of the generated layout.

    python -m dataset.from_pairs out/results.csv --out data/mine --mode cffa
    python -m dataset.from_pairs out/results.csv --out data/mine --mode cffa --masks vessel_masks
    python train_multimodal_e2e.py --data data/mine --mode cffa

Takes the pairs with the status ``ok`` of register.py. Where a ``review.csv`` (columns id, verdict,
note) lies beside the table, it takes only those with the verdict ``accept``. The moving image is
resampled into the fixed frame. The vessel mask is the given one, or the ridges of both images
(dataset/ridge_labels.py).

Folders are named ``<number of the eye>_<visit>``. Pairs with the same value in the column ``eye``
of the table, or by ``--eye``, are visits of one eye; without either, pairs with the same fixed
image.
A column ``mode`` overrides ``--mode``, a column ``mask`` names the mask of a pair.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.aligned_images import AlignedImages, align, read_given_mask, ridge_mask
from dataset.reviews import ACCEPT, read_verdicts
from dataset.samples import MODE_FILES
from dataset.split import MIN_EYES
from geometry.transform_files import read_transform
from utils.errors import InputError, run_script
from utils.files import check_writable, write_text_atomically
from utils.image_files import IMAGE_SUFFIXES, write_image
from utils.names import is_plain_name
from utils.stored_image import file_of
from utils.tables import locate, read_table

RECORD = "from_pairs.csv"
COLUMNS = ("folder", "id", "eye", "mode", "fixed", "moving", "mask", "vessel_share")
LONG_SIDE_PX = 1024  # of the images written; twice the working size of training, chosen by hand
MAX_LISTED = 5  # pairs that are named of each reason to leave them out
RIDGES, GIVEN = "ridges", "given"  # where a mask is from


@dataclass(frozen=True)
class AcceptedPair:
    """One pair to write.

    Attributes:
        id: of the row.
        eye: what tells its eye from others.
        mode: key of ``MODE_FILES``.
        fixed, moving: paths of the images.
        mask: path of the vessel mask in the fixed frame; None for that of the ridges.
        transform: path of ``transform.json``.
    """

    id: str
    eye: str
    mode: str
    fixed: str
    moving: str
    mask: Path | None
    transform: Path


def read_accepted(
    table: Path, mode: str | None, masks: Path | None, eye_pattern: str | None
) -> tuple[list[AcceptedPair], dict[str, list[str]]]:
    """The accepted pairs of a table of results, and why others are left out.

    Args:
        table: ``results.csv`` of register.py.
        mode: of pairs for which the table names none.
        masks: folder of masks that are named as the pairs; None without.
        eye_pattern: regular expression whose first group in the id is the eye; None without.

    Returns:
        The pairs, and the ids of the others by reason.

    Raises:
        InputError: unusable table, review or setting, or an accepted pair without a mode.
    """
    # Cells that a spreadsheet would take for a formula have an apostrophe in front.
    rows = [
        {name: cell.removeprefix("'") for name, cell in row.items()}
        for row in read_table(table, ["id", "status"])[0]
    ]
    verdicts = read_verdicts(table.parent)
    pairs: list[AcceptedPair] = []
    left_out: dict[str, list[str]] = {}
    for row in rows:
        reason = _reason_against(row, verdicts)
        if not reason:
            try:
                pairs.append(_pair_of(row, table.parent, mode, masks, eye_pattern))
            except InputError as error:
                reason = str(error)
        if reason:
            left_out.setdefault(reason, []).append(row["id"])
    unnamed = [pair.id for pair in pairs if pair.mode not in MODE_FILES]
    if unnamed:
        raise InputError(
            f"{table}: pair {unnamed[0]} has no known kind; give --mode, or a column mode "
            f"({', '.join(MODE_FILES)})."
        )
    return pairs, left_out


def _reason_against(row: dict[str, str], verdicts: dict[str, str] | None) -> str:
    """Why a row is not taken; "" if it is."""
    if row["status"] != "ok":
        return "not registered"
    if not is_plain_name(row["id"]):
        return "its id is not a plain name"
    if verdicts is None or verdicts.get(row["id"]) == ACCEPT:
        return ""
    return f"review.csv says {verdicts.get(row['id']) or 'nothing'}"


def _pair_of(
    row: dict[str, str],
    folder: Path,
    mode: str | None,
    masks: Path | None,
    eye_pattern: str | None,
) -> AcceptedPair:
    """A row with its files.

    Raises:
        InputError: no transform, or a mask or an eye that is not found.
    """
    path = folder / row["id"] / "transform.json"
    saved = read_transform(path)
    fixed = _existing([row.get("fixed", ""), saved.fixed_path], folder)
    moving = _existing([row.get("moving", ""), saved.moving_path], folder)
    eye = row.get("eye", "").strip()
    if eye_pattern is not None:
        found = re.search(eye_pattern, row["id"])
        if found is None:
            raise InputError(f"--eye {eye_pattern} does not fit the id")
        eye = found.group(1)
    named = row.get("mask", "").strip()
    mask = Path(locate(named, folder)) if named else _mask_in(masks, row["id"])
    kind = row.get("mode", "").strip() or mode or ""
    return AcceptedPair(row["id"], eye or f"fixed {fixed}", kind, fixed, moving, mask, path)


def _existing(paths: list[str], folder: Path) -> str:
    """The first of the given paths that is there, or else the first that is given; "" without."""
    located = [locate(path, folder) for path in paths if path]
    return next((path for path in located if file_of(path).is_file()), next(iter(located), ""))


def _mask_in(masks: Path | None, name: str) -> Path | None:
    if masks is None:
        return None
    candidates = (masks / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def name_folders(pairs: list[AcceptedPair]) -> list[str]:
    """Folder of each pair: the number of its eye, then a letter for each pair of the eye.

    Numbers and letters follow the order of the table.

    Args:
        pairs: in that order.
    """
    numbers: dict[str, int] = {}
    visits: Counter[str] = Counter()
    names = []
    for pair in pairs:
        number = numbers.setdefault(pair.eye, len(numbers) + 1)
        names.append(f"{number}_{_letters(visits[pair.eye])}")
        visits[pair.eye] += 1
    return names


def _letters(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    before = _letters(index // 26 - 1) if index >= 26 else ""
    return before + chr(ord("A") + index % 26)


def write_pair(folder: Path, pair: AcceptedPair, long_side: int) -> tuple[str, float]:
    """Write the images of one pair and its mask.

    Args:
        folder: of the sample.
        pair: the pair.
        long_side: of the images, pixels; smaller images keep their size.

    Returns:
        Where the mask is from, and the share of the pixels that it marks.

    Raises:
        InputError: unreadable files, files of another size than the transform is for, or a mask
            without a vessel.
    """
    images = align(pair.fixed, pair.moving, read_transform(pair.transform), long_side)
    mask = _mask_of(pair, images)
    if not mask.any():
        raise InputError("no vessel is marked in its mask")
    files = MODE_FILES[pair.mode]
    for suffixes, image in (
        (files.fixed, images.fixed),
        (files.moving, images.moving),
        (files.mask, mask),
    ):
        write_image(folder / f"{folder.name}_{suffixes[-1]}.png", image)
    return GIVEN if pair.mask else RIDGES, float(mask.mean())


def _mask_of(pair: AcceptedPair, images: AlignedImages) -> np.ndarray:
    return ridge_mask(images) if pair.mask is None else read_given_mask(pair.mask, images)


def write_set(
    out: Path, pairs: list[AcceptedPair], long_side: int, left_out: dict[str, list[str]]
) -> list[dict[str, str]]:
    """Write all pairs and the record of them.

    A pair that cannot be used is added to ``left_out``.

    Args:
        out: folder of the data set.
        pairs: accepted ones.
        long_side: of the images, pixels.
        left_out: ids by reason.

    Returns:
        The rows of the record.
    """
    planned: list[dict[str, str]] = [
        {"folder": name, "id": pair.id, "eye": pair.eye, "mode": pair.mode}
        | {"fixed": pair.fixed, "moving": pair.moving}
        for name, pair in zip(name_folders(pairs), pairs, strict=True)
    ]
    _write_record(out, planned)  # before the folders, so that --overwrite knows what is of this run
    rows: list[dict[str, str]] = []
    bar = tqdm(planned, desc="write", unit="pair", disable=len(pairs) < 5)
    for row, pair in zip(bar, pairs, strict=True):
        try:
            source, share = write_pair(out / row["folder"], pair, long_side)
        except InputError as error:
            shutil.rmtree(out / row["folder"], ignore_errors=True)
            left_out.setdefault(str(error), []).append(pair.id)
            continue
        rows.append(row | {"mask": source, "vessel_share": f"{share:.4f}"})
    _write_record(out, rows)
    return rows


def _write_record(out: Path, rows: list[dict[str, str]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(out / RECORD, buffer.getvalue())


def prepare_folder(out: Path, overwrite: bool) -> None:
    """Make the folder of the data set, or empty it of an earlier run.

    Args:
        out: the folder.
        overwrite: whether the folders of an earlier run are removed; only those in its record.

    Raises:
        InputError: it holds something that is not to be overwritten.
    """
    if out.is_dir() and any(out.iterdir()):
        if not overwrite or not (out / RECORD).is_file():
            remedy = "--overwrite, or another folder" if (out / RECORD).is_file() else "another one"
            raise InputError(f"--out {out}: the folder is not empty; give {remedy}.")
        for row in read_table(out / RECORD, ["folder"])[0]:
            if is_plain_name(row["folder"]):
                shutil.rmtree(out / row["folder"], ignore_errors=True)
    check_writable(out, "--out")


def get_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("results", type=Path, metavar="RESULTS", help="results.csv of register.py")
    add("--out", type=Path, required=True, metavar="ROOT", help="folder of the data set")
    add("--mode", choices=list(MODE_FILES), help="kind of the pairs without a column mode")
    add("--masks", type=Path, metavar="DIR", help="vessel masks <id>.png in the fixed frame")
    add("--eye", metavar="REGEX", help="its first group in the id names the eye")
    add(
        "--long_side",
        type=int,
        default=LONG_SIDE_PX,
        metavar="N",
        help=f"of the images, pixels (default {LONG_SIDE_PX})",
    )
    add("--overwrite", action="store_true", help="replace the folders of an earlier run")
    return parser


def main() -> None:
    """Read the accepted pairs, write the folders, say what was left out."""
    args = get_parser().parse_args()
    _check_arguments(args)
    pairs, left_out = read_accepted(args.results, args.mode, args.masks, args.eye)
    if pairs:
        prepare_folder(args.out, args.overwrite)
    rows = write_set(args.out, pairs, args.long_side, left_out) if pairs else []
    for reason, ids in left_out.items():
        more = f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else ""
        print(f"left out, {reason}: {', '.join(ids[:MAX_LISTED])}{more}")
    if not rows:
        raise InputError(f"{args.results}: no accepted pair could be used; see the lines above.")
    _summarise(args.out, rows)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.long_side < 64:
        raise InputError(f"--long_side {args.long_side}: at least 64 px are needed.")
    if args.masks is not None and not args.masks.is_dir():
        raise InputError(f"--masks {args.masks}: no such folder.")
    try:
        if args.eye is not None and re.compile(args.eye).groups < 1:
            raise InputError(f"--eye {args.eye}: has no group (...) that names the eye.")
    except re.error as error:
        raise InputError(f"--eye {args.eye}: not a regular expression ({error}).") from error


def _summarise(out: Path, rows: list[dict[str, str]]) -> None:
    eyes = {row["eye"] for row in rows}
    sources = Counter(row["mask"] for row in rows)
    modes = " ".join(sorted({row["mode"] for row in rows}))
    masks = ", ".join(f"{count} {source}" for source, count in sorted(sources.items()))
    print(
        f"{out}: {len(rows)} pairs of {len(eyes)} eyes; vessel masks: {masks}; see {out / RECORD}"
    )
    if any(eye.startswith("fixed ") for eye in eyes):
        print(
            "note: without a column eye or --eye, every fixed image counts as an eye of its own; "
            "if one eye has several, it can be in the training and in the test part at once."
        )
    if len(eyes) < MIN_EYES:
        print(f"note: training needs at least {MIN_EYES} eyes.")
    print(f"check: python -m dataset.check {out} --mode {modes}")
    print(f"train: python train_multimodal_e2e.py --data {out} --mode {modes}")


if __name__ == "__main__":
    run_script(main)
