"""Register a moving image (FA, OCT en-face, OCTA, CF) onto a fixed colour fundus photograph.

    python register.py FIXED MOVING --out DIR
    python register.py --pairs pairs.csv --out DIR     # columns id,fixed,moving; others are kept

From Python (examples/from_python.py):

    from register import Registrar
    result = Registrar("save/cffa/demo/best.pth").register("cf.png", "fa.png")
    result.status, result.matrix, result.matches, result.warp(), result.plot()

Writes DIR/<id>/{registered,checkerboard,matches}.png and transform.json per pair, DIR/results.csv
and DIR/report.html. ``--review`` then opens the page of review.py. ``--export`` adds transform.tfm
for ITK and the matches as CSV or NumPy. The matrix ``H_fix_to_mov`` takes fixed pixels to moving
pixels, (x, y), of the original images (geometry/__init__.py).
"""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

from tqdm import tqdm

from geometry.transform_files import EXPORTS
from registration.pair_outputs import PAIR_FILES, write_pair
from registration.pair_tables import (
    RESULT_COLUMNS,
    RESULTS_NAME,
    PairToRegister,
    pair_name,
    read_pairs,
    write_results,
)
from registration.registrar import Registrar, Result
from registration.transform_choice import TRANSFORMS
from review_page.report_page import REPORT_NAME, write_batch_report
from review_page.server import review
from review_page.verdicts import REVIEW_NAME
from utils.device import DEVICES
from utils.errors import InputError, run_script
from utils.files import check_writable
from utils.names import is_plain_name


def process_row(
    row: PairToRegister, registrar: Registrar, out: Path, seen: set[str], exports: list[str]
) -> dict[str, object]:
    """Register one row and write its files. An error becomes the ``reason`` of the row.

    Args:
        row: the pair.
        registrar: that registers it.
        out: folder of the results.
        seen: ids of the rows before, in lower case; the id of this row is added.
        exports: further files to write, keys of ``geometry.transform_files.EXPORTS``.

    Returns:
        The row of ``results.csv``.
    """
    try:
        _check_id(row, out, seen)
        seen.add(row.id.casefold())
        for name in PAIR_FILES:
            # Files of an earlier run must not remain if this one fails.
            (out / row.id / name).unlink(missing_ok=True)
        result = registrar.register(row.fixed, row.moving)
        write_pair(out / row.id, row, result, registrar, exports)
    except (InputError, OSError) as error:
        return _failed_record(row, str(error))
    except Exception as error:
        # One failing pair must not abort the batch. This is a fault of the program, so that the
        # traceback is printed.
        traceback.print_exc()
        return _failed_record(
            row, f"internal error, please report it: {type(error).__name__}: {error}"
        )
    return _record(row, result)


def _check_id(row: PairToRegister, out: Path, seen: set[str]) -> None:
    if not is_plain_name(row.id) or row.id.casefold() in (RESULTS_NAME, REPORT_NAME, REVIEW_NAME):
        raise InputError(f"id {row.id!r} is not a plain name; it becomes a folder below {out}.")
    if row.id.casefold() in seen:
        raise InputError(f"id {row.id} occurs twice; the first row keeps it.")


def _failed_record(row: PairToRegister, reason: str) -> dict[str, object]:
    return {
        **{name: "" for name in RESULT_COLUMNS},
        "id": row.id,
        "status": "failed",
        "reason": reason,
        "confidence": 0.0,
        "n_matches": 0,
        "n_inliers": 0,
        "seconds": 0.0,
        **row.extra,
    }


def _record(row: PairToRegister, result: Result) -> dict[str, object]:
    record = _failed_record(row, result.reason) | {
        "status": result.status,
        "confidence": f"{result.confidence:.3f}",
        "n_matches": result.n_matches,
        "n_inliers": result.n_inliers,
        "seconds": f"{result.seconds:.3f}",
    }
    if result.H_fix_to_mov is not None:
        for i in range(3):
            for j in range(3):
                record[f"h{i}{j}"] = repr(float(result.H_fix_to_mov[i, j]))
    return record


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
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint (default: the weights shipped in save/pretrained)",
    )
    parser.add_argument(
        "--transform",
        default="affine",
        choices=TRANSFORMS,
        help="curved transforms (quadratic, deformable, auto) are used where held-out patches "
        "support them; the affine matrix is always reported (default affine)",
    )
    parser.add_argument(
        "--img_size",
        type=int,
        metavar="N",
        help="working size: diameter of the field of view, pixels",
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
    parser.add_argument(
        "--review",
        action="store_true",
        help="then open the page on which the pairs are judged (as review.py); keeps the matches",
    )
    return parser


def main() -> None:
    """Read the pairs, register each, write the results.

    Exit code 0 when all rows were processed, 2 for wrong usage.
    """
    parser = get_args_parser()
    args = parser.parse_args()
    if bool(args.pairs) == bool(args.fixed) or bool(args.fixed) != bool(args.moving):
        parser.error("give either FIXED and MOVING, or --pairs CSV")
    if args.review and "numpy" not in args.export:
        args.export.append("numpy")  # the page shows the matches
    if args.pairs:
        rows = read_pairs(args.pairs)
    else:
        rows = [PairToRegister(pair_name(args.fixed, args.moving), args.fixed, args.moving, {})]
    registrar = Registrar(args.weights, args.transform, args.img_size, args.device)
    out = Path(args.out)
    records: list[dict[str, object]] = []
    seen: set[str] = set()
    extra = list(rows[0].extra) if rows else []
    check_writable(out, "--out")
    write_results(out / RESULTS_NAME, [], extra)
    for row in tqdm(rows, desc="register", unit="pair", disable=len(rows) < 2):
        record = process_row(row, registrar, out, seen, args.export)
        records.append(record)
        write_results(out / RESULTS_NAME, records, extra)
        reason = f" ({record['reason']})" if record["reason"] else ""
        tqdm.write(f"{row.id}: {record['status']}{reason}")
    n_ok = sum(record["status"] == "ok" for record in records)
    print(f"{n_ok} of {len(records)} pairs registered; see {out / RESULTS_NAME}")
    page = write_batch_report(out)
    print(f"{page}: the pairs, least sure first; to judge and correct them: python review.py {out}")
    if args.review:
        review(out)


if __name__ == "__main__":
    run_script(main)
