"""Write a generated data set: aligned CF, FA, OCT and OCTA images with vessel masks.

    python -m synthesis --out data/generated --eyes 120
    python -m synthesis --out data/mixed --eyes 160 --from_cf CF --from_fa FA --from_octa OCTA

Real images can be added: colour photographs and OCTA with vessel masks, angiograms without. They
are kept, and the other modalities are rendered onto their vessels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from synthesis.generated_set import DEFAULT_EYES, contact_sheet, write_generated_set
from synthesis.sources import SOURCE_KINDS
from utils.errors import InputError
from utils.image_files import write_image


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; ``arguments`` None takes those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/generated"), help="folder of the set"
    )
    parser.add_argument(
        "--eyes", type=int, help="eyes to generate (default 120, with real images 0)"
    )
    parser.add_argument(
        "--visits", type=int, default=1, help="renderings of each eye (letters A, B, ...)"
    )
    parser.add_argument("--size", type=int, default=512, help="side of all images, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--from_cf",
        type=Path,
        nargs="+",
        help="real colour photographs: folder with images/ and masks/",
    )
    parser.add_argument(
        "--from_fa",
        type=Path,
        nargs="+",
        help="real angiograms: folder of images; their vessels are detected",
    )
    parser.add_argument(
        "--from_octa", type=Path, nargs="+", help="real OCTA: folder with images/ and labels/"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a different synthesised set"
    )
    parser.add_argument(
        "--show", type=Path, metavar="SHEET.png", help="also write a contact sheet of the first 12"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Write the set and, if wanted, its contact sheet.

    Args:
        arguments: command line; None takes that of the process.

    Returns:
        Exit code: 0, or 2 after an error of the input.
    """
    given = parse_arguments(arguments)
    real = {kind: folders for kind in SOURCE_KINDS if (folders := getattr(given, f"from_{kind}"))}
    eyes = given.eyes if given.eyes is not None else (0 if real else DEFAULT_EYES)
    try:
        ids = write_generated_set(
            given.out,
            eyes,
            seed=given.seed,
            size=given.size,
            visits=given.visits,
            processes=given.processes,
            real=real,
            overwrite=given.overwrite,
        )
        if given.show is not None:
            write_image(given.show, contact_sheet(given.out, ids[:12], given.size))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(ids)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
