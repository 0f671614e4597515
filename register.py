"""Register a moving image (FA, OCT en-face, OCTA, another CF) onto a fixed colour fundus photograph.

    python register.py FIXED MOVING --out DIR
    python register.py --pairs pairs.csv --out DIR            # columns id,fixed,moving; further columns are kept

From Python:

    from register import Registrar
    result = Registrar("save/cffa/demo/best.pth").register("cf.png", "fa.png")
    result.status, result.matrix, result.matches, result.warp(), result.plot()        # examples/from_python.py

Writes DIR/<id>/{registered,checkerboard,matches}.png and transform.json per pair (``--export`` adds transform.tfm for ITK and the
matches as CSV or NumPy), and DIR/results.csv. The matrix
``H_fix_to_mov`` takes fixed pixels to moving pixels, (x, y), at the images' own sizes (utils/geometry.py).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from model.factory import load_matcher
from model.registration import TRANSFORMS, Registration, register_pair
from utils.device import DEVICES, pick_device
from utils.errors import InputError, run_script
from utils.field_of_view import estimate_field_of_view
from utils.geometry import Size
from utils.image_io import (
    MIN_SIDE_PX,
    check_content,
    check_writable,
    read_color,
    read_gray,
    to_unit_range,
    write_bytes_atomically,
    write_image,
    write_text_atomically,
)
from utils.interchange import EXPORTS, ITK_FIELD, export_files
from utils.names import is_plain_name
from utils.pictures import (
    checkerboard,
    draw_displacement,
    draw_matches,
    encoded_figure,
    plot_registration,
    register_onto_fixed,
)
from utils.transforms import CURVED_KINDS, displacement_after_affine

PRETRAINED = Path(__file__).resolve().parent / "save" / "pretrained"
DEFAULT_WEIGHTS = PRETRAINED / "superretina_multimodal.pth"
RESULT_COLUMNS = [
    "id",
    "status",
    "reason",
    "confidence",
    "n_matches",
    "n_inliers",
    "seconds",
    *(f"h{row}{column}" for row in range(3) for column in range(3)),
]
PAIR_FILES = (
    "registered.png",
    "checkerboard.png",
    "checkerboard_affine.png",
    "displacement.png",
    "matches.png",
    "transform.json",
    ITK_FIELD,
    *EXPORTS.values(),
)
RESULTS_NAME = "results.csv"
MAX_TABLE_BYTES = 256 << 20


class Matches(NamedTuple):
    """Matched points (K, 2), (x, y) in original pixels of each image, row i corresponds; ``inliers`` (K,) bool agree with the
    matrix."""

    fixed_points: np.ndarray
    moving_points: np.ndarray
    inliers: np.ndarray


class Result:
    """What :meth:`Registrar.register` returns; everything in original pixels of both images.

    Attributes:
        registration: the pipeline's own record, with the working frames that debugging needs.
        fixed, moving: the images as they were given.
    """

    def __init__(
        self,
        registration: Registration,
        fixed: np.ndarray | str | Path,
        moving: np.ndarray | str | Path,
    ) -> None:
        self.registration = registration
        self.fixed, self.moving = fixed, moving

    def __repr__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"Result({self.status}{reason}, {self.n_inliers} of {self.n_matches} matches agree)"

    def __getattr__(self, name: str) -> object:
        # status, reason, n_matches, n_inliers, seconds, ...: the pipeline says them, and what it will say besides.
        if name.startswith("_") or name == "registration":
            raise AttributeError(name)
        return getattr(self.registration, name)

    @property
    def matrix(self) -> np.ndarray | None:
        """``H_fix_to_mov`` (3, 3): fixed pixels to moving pixels, (x, y), pixel centres at integers; None when failed. Of a
        curved transform its affine part: ``transform.map`` maps points by the whole of it."""
        return self.registration.H_fix_to_mov

    @property
    def matches(self) -> Matches:
        """All matches, and which of them agree with the matrix."""
        return Matches(
            self.registration.fixed_points,
            self.registration.moving_points,
            self.registration.inliers,
        )

    def warp(self, image: np.ndarray | str | Path | None = None) -> np.ndarray:
        """An image of the moving frame seen in the fixed frame; the moving image itself when None.

        Args:
            image: a path or an array (H, W[, 3]), of the size of the moving image (another frame of the same examination).

        Returns:
            (H, W) or (H, W, 3) float32 in [0, 1], the size of the fixed image; 0 where the moving frame shows nothing.

        Raises:
            InputError: the registration failed, or the image has another size than the moving one.
        """
        if self.matrix is None:
            raise InputError(f"nothing can be warped, for the registration failed: {self.reason}")
        moving_size = _as_picture(self.moving).shape[:2]
        picture = _as_picture(self.moving if image is None else image)
        if picture.shape[:2] != moving_size:
            raise InputError(
                f"an image of {picture.shape[1]} x {picture.shape[0]} px was given, but the matrix is for a moving "
                f"image of {moving_size[1]} x {moving_size[0]} px."
            )
        return register_onto_fixed(picture, self.transform, _as_picture(self.fixed).shape[:2])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Fixed image, registered image, checkerboard and matches in one figure, also written to ``path`` when given."""
        registered = None if self.matrix is None else self.warp()
        figure = plot_registration(
            _as_picture(self.fixed),
            _as_picture(self.moving),
            registered,
            *self.matches,
            self.status + (f": {self.reason}" if self.reason else ""),
        )
        if path is not None:
            write_bytes_atomically(
                path, encoded_figure(figure, Path(path).suffix.lstrip(".") or "png")
            )
        return figure


class Registrar:
    """Registers pairs with one trained network.

    Args:
        weights: a checkpoint of a training run; the weights shipped with the project when None.
        transform: "affine", "similarity", "homography", or beyond a matrix "quadratic", "deformable", "auto": as far as the
            images bear it out (see ``model.beyond_affine``).
        img_size: working size (long side, pixels); the checkpoint's when None.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: unusable checkpoint or setting.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        transform: str = "affine",
        img_size: int | None = None,
        device: str = "auto",
    ) -> None:
        if transform not in TRANSFORMS:
            raise InputError(f"--transform {transform}: choose one of {', '.join(TRANSFORMS)}.")
        if img_size is not None and not 64 <= img_size <= 8192:
            raise InputError(f"--img_size {img_size}: must lie between 64 and 8192.")
        if weights is None and not DEFAULT_WEIGHTS.is_file():
            raise InputError(
                f"{DEFAULT_WEIGHTS}: no weights are shipped here; train with train_multimodal_e2e.py (or run "
                "`make demo`) and give --weights save/<mode>/<name>/best.pth."
            )
        self.weights = Path(weights or DEFAULT_WEIGHTS)
        self.transform = transform
        self.matcher, self.plausibility = load_matcher(self.weights, pick_device(device), img_size)

    def register(self, fixed: np.ndarray | str | Path, moving: np.ndarray | str | Path) -> Result:
        """Register one pair.

        Args:
            fixed, moving: paths, or arrays (H, W) or (H, W, 3) RGB, uint8, uint16 or float; sizes may differ.

        Returns:
            The result in original pixels of both images. A pair that cannot be registered has status "failed" and a reason.

        Raises:
            InputError: an image that cannot be used.
        """
        return Result(
            register_pair(
                self.matcher, _as_gray(fixed), _as_gray(moving), self.transform, self.plausibility
            ),
            fixed,
            moving,
        )


def _as_gray(image: np.ndarray | str | Path) -> np.ndarray:
    if isinstance(image, (str, Path)):
        return read_gray(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "buif":
        raise InputError(
            f"an image was given as {getattr(image, 'dtype', type(image).__name__)}; a path or an array of uint8, "
            "uint16 or float is needed."
        )
    if (
        not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] >= 3))
        or min(image.shape[:2]) < MIN_SIDE_PX
    ):
        raise InputError(
            f"an image of shape {image.shape} was given; (H, W) or (H, W, 3) with at least {MIN_SIDE_PX} px a "
            "side needed."
        )
    gray = to_unit_range(image[..., 1] if image.ndim == 3 else image, "the given image")
    check_content(gray, "the given image")
    return gray


def _as_picture(image: np.ndarray | str | Path) -> np.ndarray:
    """(H, W[, 3]) float32 in [0, 1], in colour where there is colour."""
    if not isinstance(image, np.ndarray):
        return read_color(image)
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] >= 3)):
        raise InputError(f"an image of shape {image.shape} was given; (H, W) or (H, W, 3) needed.")
    return to_unit_range(image if image.ndim == 2 else image[..., :3], "the given image")


class PairRow(NamedTuple):
    """One pair to register; ``extra`` are further columns of the table, kept in the results."""

    id: str
    fixed: str
    moving: str
    extra: dict[str, str]


def read_pairs(path: str | Path) -> list[PairRow]:
    """Read a table of pairs. Paths are relative to the current folder, or else to the table's.

    Raises:
        InputError: missing or unreadable table, or missing columns.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table of pairs.")
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_TABLE_BYTES >> 20} MB; divide the table of pairs."
            )
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
        columns = next(csv.reader(io.StringIO(text)), [])
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: not a readable CSV table in UTF-8: {error}") from error
    missing = [name for name in ("id", "fixed", "moving") if name not in columns]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the header must be id,fixed,moving[,...]."
        )
    extra = [
        name
        for name in columns
        if name not in ("id", "fixed", "moving") and name not in RESULT_COLUMNS
    ]

    def locate(value: str | None) -> str:
        value = (value or "").strip()
        beside = path.parent / value
        # os.path and not pathlib: an impossible name is simply not there, and becomes that row's reason later.
        return (
            str(beside) if value and not os.path.exists(value) and os.path.exists(beside) else value
        )

    return [
        PairRow(
            (row["id"] or "").strip(),
            locate(row["fixed"]),
            locate(row["moving"]),
            {name: row[name] or "" for name in extra},
        )
        for row in rows
    ]


def describe_transform(result: Result, fixed_size: Size) -> dict[str, object]:
    """The entries of ``transform.json`` about the transform: its kind, why it was chosen, whether it folds, and itself."""
    transform = result.transform
    if transform is None:
        return {
            "transform": None,
            "transform_reason": "",
            "least_jacobian": None,
            "fix_to_mov": None,
        }
    least = transform.least_jacobian(fixed_size)
    return {
        "transform": transform.kind,
        "transform_reason": result.transform_reason,
        "least_jacobian": least if np.isfinite(least) else None,
        "fix_to_mov": transform.to_dict(),
    }


def write_what_affine_leaves(
    folder: Path, fixed: np.ndarray, moving: np.ndarray, result: Result
) -> None:
    """Write ``checkerboard_affine.png`` and ``displacement.png``: what a curved transform puts right."""
    size = fixed.shape[:2]
    write_image(
        folder / "checkerboard_affine.png",
        checkerboard(fixed, register_onto_fixed(moving, result.H_affine, size)),
    )
    left = displacement_after_affine(result.transform, result.H_affine, size)
    seen = (
        register_onto_fixed(
            estimate_field_of_view(moving.max(axis=-1)).astype(np.float32), result.transform, size
        )
        > 0.5
    )
    figure = draw_displacement(fixed, left, seen & estimate_field_of_view(fixed.max(axis=-1)))
    write_bytes_atomically(folder / "displacement.png", encoded_figure(figure, "png"))


def write_pair(
    folder: Path, row: PairRow, result: Result, registrar: Registrar, exports: list[str]
) -> None:
    """Write a pair's pictures, ``transform.json`` (docs/transform_json.md) and the files of ``exports``."""
    fixed, moving = read_color(row.fixed), read_color(row.moving)
    write_image(folder / "matches.png", draw_matches(fixed, moving, *result.matches))
    if result.transform is not None:
        registered = register_onto_fixed(moving, result.transform, fixed.shape[:2])
        write_image(folder / "registered.png", registered)
        write_image(folder / "checkerboard.png", checkerboard(fixed, registered))
        if result.transform.kind in CURVED_KINDS:
            write_what_affine_leaves(folder, fixed, moving, result)
    content = {
        "version": 2,
        "convention": "fix_to_mov takes pixels (x, y) of the fixed image to pixels of the moving image; pixel centres at "
        "integers, origin top-left, both images at their own size; H_fix_to_mov is its matrix, or of a "
        "quadratic or deformable transform the affine matrix that it refines",
        "status": result.status,
        "reason": result.reason,
        "confidence": round(result.confidence, 4),
        "asked_for": registrar.transform,
        **describe_transform(result, fixed.shape[:2]),
        "H_fix_to_mov": None if result.H_fix_to_mov is None else result.H_fix_to_mov.tolist(),
        "H_affine": None if result.H_affine is None else result.H_affine.tolist(),
        "fixed": {"path": row.fixed, "height": fixed.shape[0], "width": fixed.shape[1]},
        "moving": {"path": row.moving, "height": moving.shape[0], "width": moving.shape[1]},
        "n_matches": result.n_matches,
        "n_inliers": result.n_inliers,
        "seconds": round(result.seconds, 4),
        "weights": str(registrar.weights),
    }
    write_text_atomically(folder / "transform.json", json.dumps(content, indent=2) + "\n")
    export_files(folder, exports, result.transform, result.matrix, fixed.shape[:2], *result.matches)


def pair_name(fixed: str, moving: str) -> str:
    """Id of a pair given without one: both file names, without what no folder may be called."""
    stems = [re.sub(r"[^\w-]+", "_", Path(path).stem)[:48] for path in (fixed, moving)]
    return "_".join(stems).strip("_") or "pair"


def process_row(
    row: PairRow, registrar: Registrar, out: Path, seen: set[str], exports: list[str]
) -> dict[str, object]:
    """Register one row and write its files. Whatever is wrong with the row becomes its ``reason``.

    Args:
        exports: further files to write, see ``utils.interchange.EXPORTS``.
        seen: ids of the rows before; this row's id is added.

    Returns:
        The row of ``results.csv``.
    """
    failed: dict[str, object] = (
        {name: "" for name in RESULT_COLUMNS}
        | {
            "id": row.id,
            "status": "failed",
            "confidence": 0.0,
            "n_matches": 0,
            "n_inliers": 0,
            "seconds": 0.0,
        }
        | row.extra
    )
    try:
        if not is_plain_name(row.id) or row.id.casefold() == RESULTS_NAME:
            raise InputError(f"id {row.id!r} is not a plain name; it becomes a folder below {out}.")
        if row.id.casefold() in seen:
            raise InputError(f"id {row.id} occurs twice; the first row keeps it.")
        seen.add(row.id.casefold())
        for name in PAIR_FILES:
            # What an earlier attempt left must not stand beside a failure.
            (out / row.id / name).unlink(missing_ok=True)
        result = registrar.register(row.fixed, row.moving)
        record = failed | {
            "status": result.status,
            "reason": result.reason,
            "confidence": f"{result.confidence:.3f}",
            "n_matches": result.n_matches,
            "n_inliers": result.n_inliers,
            "seconds": f"{result.seconds:.3f}",
        }
        if result.H_fix_to_mov is not None:
            record |= {
                f"h{i}{j}": repr(float(result.H_fix_to_mov[i, j]))
                for i in range(3)
                for j in range(3)
            }
        write_pair(out / row.id, row, result, registrar, exports)
    except (InputError, OSError) as error:
        return failed | {"reason": str(error)}
    except Exception as error:
        # A batch of a night must not end with one pair; the fault is ours, so it is shown in full.
        traceback.print_exc()
        return failed | {
            "reason": f"internal error, please report it: {type(error).__name__}: {error}"
        }
    return record


def write_results(path: Path, records: list[dict[str, object]], extra: list[str]) -> None:
    """Write ``results.csv`` atomically; ``extra`` names the columns kept from the table of pairs."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, RESULT_COLUMNS + extra, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text_atomically(path, buffer.getvalue())


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "fixed", nargs="?", metavar="FIXED", help="fixed image (colour fundus photograph)"
    )
    parser.add_argument("moving", nargs="?", metavar="MOVING", help="moving image")
    parser.add_argument("--pairs", metavar="CSV", help="table with columns id,fixed,moving")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint (default: the weights shipped in save/pretrained)",
    )
    parser.add_argument(
        "--transform",
        default="affine",
        choices=TRANSFORMS,
        help="beyond matrices (quadratic, deformable, auto) as far as the images bear it out; the affine matrix "
        "is always reported (default affine)",
    )
    parser.add_argument(
        "--img_size", type=int, metavar="N", help="working size, long side in pixels"
    )
    parser.add_argument(
        "--export",
        nargs="+",
        default=[],
        choices=list(EXPORTS),
        metavar="KIND",
        help="also write, per pair, "
        + ", ".join(f"{name} ({kind})" for kind, name in EXPORTS.items()),
    )
    parser.add_argument("--device", default="auto", choices=DEVICES)
    return parser


def main() -> None:
    """Read the pairs, register each, write results. Exit code 0 when all rows were processed, 2 for wrong usage."""
    parser = get_args_parser()
    args = parser.parse_args()
    if bool(args.pairs) == bool(args.fixed) or bool(args.fixed) != bool(args.moving):
        parser.error("give either FIXED and MOVING, or --pairs CSV")
    if args.pairs:
        rows = read_pairs(args.pairs)
    else:
        rows = [PairRow(pair_name(args.fixed, args.moving), args.fixed, args.moving, {})]
    registrar = Registrar(args.weights, args.transform, args.img_size, args.device)
    out, records, seen = Path(args.out), [], set()
    extra = list(rows[0].extra) if rows else []
    check_writable(out, "--out")
    write_results(out / RESULTS_NAME, [], extra)
    for row in tqdm(rows, desc="register", unit="pair", disable=len(rows) < 2):
        records.append(process_row(row, registrar, out, seen, args.export))
        write_results(out / RESULTS_NAME, records, extra)
        tqdm.write(
            f"{row.id}: {records[-1]['status']}"
            + (f" ({records[-1]['reason']})" if records[-1]["reason"] else "")
        )
    n_ok = sum(record["status"] == "ok" for record in records)
    print(f"{n_ok} of {len(records)} pairs registered; see {out / 'results.csv'}")


if __name__ == "__main__":
    run_script(main)
