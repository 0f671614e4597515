"""Register a pair from Python, step by step.

    python examples/from_python.py FIXED MOVING --out from_python
    python examples/from_python.py FIXED MOVING --weights FILE    # other weights than the shipped

Each part after a line "# %%" is a cell of a notebook.
"""

# %% The images and the weights
import argparse
import sys
from pathlib import Path

import numpy as np

# Python finds the project from any working folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from register import Registrar  # noqa: E402  (needs the line above)
from utils.image_files import read_gray, write_image  # noqa: E402

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("fixed", help="fixed image")
parser.add_argument("moving", help="moving image")
parser.add_argument("--weights", help="checkpoint (default: the shipped weights)")
parser.add_argument("--out", type=Path, default=Path("from_python"), help="folder of the results")
args = parser.parse_args()

# %% Load the network once; it registers any number of pairs.
# An image is a path or an array: (H, W), or (H, W, 3) RGB; uint8, uint16 or float.
registrar = Registrar(args.weights)
result = registrar.register(args.fixed, args.moving)
print(result)

# %% A registration that failed has no matrix, but a reason.
if result.matrix is None:
    print("no transform:", result.reason)
    sys.exit(0)

# %% The matrix (3, 3) maps fixed pixels (x, y) to moving pixels, at the original image sizes.
x, y, w = result.matrix @ [100.0, 80.0, 1.0]
print(f"fixed pixel (100, 80) corresponds to moving pixel ({x / w:.1f}, {y / w:.1f})")

# %% The matches: points (K, 2) in pixels of each image, and which are inliers of the matrix.
fixed_points, moving_points, inliers = result.matches
print(f"{inliers.sum()} of {len(inliers)} matches agree with the matrix; the first of them:")
print(np.round(fixed_points[inliers][0], 1), np.round(moving_points[inliers][0], 1))

# %% The moving image resampled into the fixed frame: float32 in [0, 1], size of the fixed image.
write_image(args.out / "registered.png", result.warp())

# %% Another image of the same size and frame as the moving one, here its negative.
write_image(args.out / "negative_registered.png", result.warp(1.0 - read_gray(args.moving)))

# %% A figure of all of it; in a notebook, `result.plot()` alone displays it.
result.plot(args.out / "overview.png")
print("written:", *sorted(path.name for path in args.out.iterdir()))
