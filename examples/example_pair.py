"""Make the small pair in examples/pair, of which no person's eye is a part.

    python -m examples.example_pair --out examples/pair

A drawn eye, rendered as a colour photograph and as an angiogram; the angiogram is turned, reduced
and cut, so its frame and size are not those of the photograph.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from geometry.matrices import affine_about, image_centre
from geometry.rasters import register_onto_fixed
from synthesis.eyes import file_names
from synthesis.generated_set import write_generated_set
from utils.files import write_bytes_atomically
from utils.image_files import read_color, read_gray

SEED = 19
SIDE_PX = 448  # of the photograph
MOVING_SIZE = (360, 400)  # (height, width) of the angiogram
TURN_DEG, SCALE = 25.0, 0.85  # of the angiogram against the photograph
JPEG_QUALITY = 85


def write_example_pair(out: Path) -> tuple[Path, Path]:
    """Write ``cf.jpg`` and ``fa.jpg``.

    Args:
        out: folder.

    Returns:
        Both files.
    """
    with tempfile.TemporaryDirectory() as folder:
        (name,) = write_generated_set(Path(folder) / "eyes", 1, SEED, SIDE_PX, progress=False)
        sample = Path(folder) / "eyes" / name
        files = file_names(name, SIDE_PX)
        fixed, angiogram = read_color(sample / files["cf"]), read_gray(sample / files["fa"])
    H_fix_to_mov = affine_about(
        TURN_DEG, SCALE, 0.0, image_centre(angiogram.shape), image_centre(MOVING_SIZE) + [6.0, -9.0]
    )
    moving = register_onto_fixed(angiogram, np.linalg.inv(H_fix_to_mov), MOVING_SIZE)
    paths = out / "cf.jpg", out / "fa.jpg"
    for path, image in zip(paths, (fixed[..., ::-1], moving), strict=True):
        grey_levels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
        _, data = cv2.imencode(".jpg", grey_levels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        write_bytes_atomically(path, data.tobytes())
    return paths


def main() -> None:
    """Write the pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("examples/pair"))
    print(*write_example_pair(parser.parse_args().out))


if __name__ == "__main__":
    main()
