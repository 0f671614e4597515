"""Register a moving image (FA, OCT en-face, OCTA, another CF) onto a fixed colour fundus photograph.

    python register.py FIXED MOVING --out DIR
    python register.py --pairs pairs.csv --out DIR            # columns id,fixed,moving; further columns are kept

From Python:

    from register import Registrar
    result = Registrar("save/cffa/demo/best.pth").register("cf.png", "fa.png")
    result.status, result.matrix, result.matches, result.warp(), result.plot()        # examples/from_python.py

Writes DIR/<id>/{registered,checkerboard,matches}.png and transform.json per pair (``--export`` adds transform.tfm for ITK and the
matches as CSV or NumPy), and DIR/results.csv. The matrix
``H_fix_to_mov`` takes fixed pixels to moving pixels, (x, y), at the images' own sizes (geometry/__init__.py).
"""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

from tqdm import tqdm

from geometry.transform_files import EXPORTS
from registration.pair_files import PAIR_FILES, write_pair
from registration.pair_table import (
    RESULT_COLUMNS,
    RESULTS_NAME,
    PairToRegister,
    pair_name,
    read_pairs,
    write_results,
)
from registration.pipeline import TRANSFORMS
from registration.registrar import Registrar
from utils.device import DEVICES
from utils.errors import InputError, run_script
from utils.files import check_writable
from utils.names import is_plain_name


def process_row(
    row: PairToRegister, registrar: Registrar, out: Path, seen: set[str], exports: list[str]
) -> dict[str, object]:
    """Register one row and write its files. Whatever is wrong with the row becomes its ``reason``.

    Args:
        exports: further files to write, see ``geometry.transform_files.EXPORTS``.
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
        rows = [PairToRegister(pair_name(args.fixed, args.moving), args.fixed, args.moving, {})]
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
