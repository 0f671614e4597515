"""Look at registered pairs, judge them, and place or correct landmarks, in the browser.

    python review.py RESULTS                    # a folder that register.py wrote
    python review.py ROOT --fixed_role 02       # real pairs, with landmarks or without

Starts a page on this computer, prints its address and opens it. Verdicts are kept in review.csv as
they are made. Landmarks are saved in NNN_01.txt and NNN_02.txt, and their transform in
transform.json, which every other command takes. docs/review.md describes the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dataset.layouts import LAYOUTS
from dataset.real_pair_files import FIXED_ROLES
from review_page.review_set import ReviewOptions, open_review_set
from review_page.server import LOCAL_HOST, serve
from review_page.workspace import Workspace
from utils.errors import InputError, run_script
from utils.files import check_writable


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("results", metavar="RESULTS", help="folder of register.py, or of real pairs")
    add("--layout", default="auto", choices=LAYOUTS, help="of a data set")
    add("--fixed_role", default="01", choices=FIXED_ROLES, help="fixed image of numbered pairs")
    add(
        "--images",
        nargs="+",
        default=[],
        type=Path,
        metavar="DIR",
        help="read images in these folders only, also if they were moved there",
    )
    add(
        "--landmarks",
        type=Path,
        metavar="DIR",
        help="read and write landmarks in this folder instead of beside the images, for instance "
        "of a second annotator",
    )
    add("--second", type=Path, metavar="DIR", help="landmarks of a second annotator, to compare")
    add("--weights", metavar="FILE", type=Path, help="checkpoint for pairs registered on request")
    add("--read_only", action="store_true", help="nothing can be saved")
    add("--host", default=LOCAL_HOST, help=f"address to listen on (default {LOCAL_HOST})")
    add("--port", type=int, help="port to listen on (default: 8765, or any free one)")
    add("--no_browser", action="store_true", help="print the address, do not open it")
    return parser


def main() -> None:
    """Open the folder and serve the page."""
    args = get_args_parser().parse_args()
    for folder in (*args.images, *filter(None, [args.second])):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; check --images and --second.")
    options = ReviewOptions(args.layout, args.fixed_role, tuple(args.images), args.landmarks)
    review = open_review_set(args.results, options)
    if not args.read_only:
        check_writable(review.out, "RESULTS (or give --read_only)")
    workspace = Workspace(review, args.weights, args.second)
    serve(workspace, args.host, args.port, args.read_only, not args.no_browser)


if __name__ == "__main__":
    run_script(main)
