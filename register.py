"""Register a moving image (FA, OCT en-face, OCTA, CF) onto a fixed colour fundus photograph.

    python register.py FIXED MOVING --out DIR
    python register.py --pairs pairs.csv --out DIR     # columns fixed,moving[,id]; others are kept
    python register.py --fixed 'P*/cf*.png' --moving 'P*/fa*.png' --out DIR

From Python (examples/from_python.py):

    from register import Registrar
    result = Registrar("save/cffa/demo/best.pth").register("cf.png", "fa.png")
    result.status, result.matrix, result.matches, result.warp(), result.plot()

Writes DIR/<id>/{registered,checkerboard,matches}.png and transform.json per pair, DIR/results.csv
and DIR/report.html. ``--review`` then opens the page of review.py. ``--export`` adds transform.tfm
for ITK and the matches as CSV or NumPy. The matrix ``H_fix_to_mov`` takes fixed pixels to moving
pixels, (x, y), of the original images (geometry/__init__.py). A batch that was stopped goes on with
the same command (docs/scale.md).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from batch.command import BatchOptions, register_pairs
from batch.pairing import describe_pairs, find_pairs
from batch.work import RegistrationWork
from geometry.transform_files import EXPORTS
from registration.pair_outputs import PICTURES
from registration.pair_tables import RESULTS_NAME, PairToRegister, absolute, read_pairs
from registration.registrar import Registrar, Result
from registration.transform_choice import TRANSFORMS
from review_page.report_page import write_batch_report
from review_page.server import review
from utils.device import DEVICES
from utils.errors import run_script
from utils.files import sha256_of
from utils.version import add_version

__all__ = ["Registrar", "Result"]


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_pairs(parser)
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
    parser.add_argument(
        "--pictures",
        default="all",
        choices=PICTURES,
        help="all, registered.png alone, or none; of large images they take most of the time and "
        "space (default all)",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument(
        "--review",
        action="store_true",
        help="then open the page on which the pairs are judged (as review.py); keeps the matches",
    )
    _add_batch(parser)
    add_version(parser)
    return parser


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fixed_image", nargs="?", metavar="FIXED", help="fixed image (colour fundus photograph)"
    )
    parser.add_argument("moving_image", nargs="?", metavar="MOVING", help="moving image")
    parser.add_argument(
        "--pairs", metavar="TABLE", help="table with columns fixed,moving[,id]: CSV or .xlsx"
    )
    parser.add_argument(
        "--fixed",
        metavar="PATTERN",
        help="fixed images, such as 'P*/cf*.png'; paired with --moving by folder, or by what "
        "{name} stands for in both patterns",
    )
    parser.add_argument("--moving", metavar="PATTERN", help="moving images, such as 'P*/fa*.png'")
    parser.add_argument(
        "--skip_unpaired",
        action="store_true",
        help="leave out files of --fixed and --moving that have no partner",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="only show the pairs, register nothing"
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, one thread each (default: all cores for a table); 1: this process itself",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on a Ray cluster: its address, auto, or local (requirements-cluster.txt); "
        "--workers is then the number of actors (default: one per GPU, else per core; more share "
        "the GPUs)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a pair that takes longer fails; 0 for no limit (default 600)",
    )
    parser.add_argument(
        "--retry_failed", action="store_true", help="do rows again that have failed"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the results of DIR and start anew"
    )


def _pairs_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[PairToRegister]:
    """The pairs of the command line; those of patterns are shown."""
    ways = [bool(args.pairs), bool(args.fixed_image), bool(args.fixed or args.moving)]
    halves = (args.fixed_image, args.moving_image), (args.fixed, args.moving)
    if sum(ways) != 1 or any(bool(fixed) != bool(moving) for fixed, moving in halves):
        parser.error(
            "give either FIXED and MOVING, or --pairs TABLE, or --fixed and --moving PATTERN"
        )
    if args.pairs:
        rows = read_pairs(args.pairs)
    elif args.fixed:
        rows = find_pairs(args.fixed, args.moving, args.skip_unpaired)
    else:
        images = absolute(args.fixed_image), absolute(args.moving_image)
        rows = [PairToRegister("", *images, {})]
    if args.fixed or args.dry_run:
        print(describe_pairs(rows), flush=True)
    return rows


def main() -> None:
    """Read the pairs, register each, write the results.

    Exit code 0 when at least one pair is registered (or the table is empty), 1 when none is, 2 for
    wrong usage, 130 when it was stopped.
    """
    parser = get_args_parser()
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.timeout < 0:
        parser.error("--timeout must not be negative")
    if args.review and "numpy" not in args.export:
        args.export.append("numpy")  # the page shows the matches
    rows = _pairs_of(args, parser)
    if args.dry_run:
        return
    is_table = args.fixed_image is None
    # Unusable weights are found before any worker is started.
    registrar = Registrar(args.weights, args.transform, args.img_size, args.device)
    work = RegistrationWork(
        weights=absolute(str(registrar.weights)),
        weights_sha256=sha256_of(registrar.weights),
        transform=args.transform,
        img_size=args.img_size,
        device=args.device,
        out=absolute(args.out),
        exports=tuple(args.export),
        pictures=args.pictures,
        threads=1 if is_table else None,
    )
    options = BatchOptions(
        workers=args.workers if is_table else 1,
        cluster=args.cluster,
        timeout=args.timeout or None,
        overwrite=args.overwrite,
        retry_failed=args.retry_failed,
        # --overwrite would start anew once more.
        command=shlex.join(["python", *(word for word in sys.argv if word != "--overwrite")]),
    )
    summary = register_pairs(rows, work, options, is_table)
    print(
        f"{summary.n_ok} of {summary.n_rows} pairs registered; see {Path(args.out) / RESULTS_NAME}"
    )
    page = write_batch_report(Path(args.out))
    print(f"{page}: the pairs, least sure first; to judge them: python review.py {args.out}")
    if args.review:
        review(Path(args.out))
    if summary.n_rows and not summary.n_ok:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
