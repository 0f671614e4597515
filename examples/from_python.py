"""Register a pair from Python, step by step.

python examples/from_python.py FIXED MOVING --out from_python       # --weights FILE for others than those that ship
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from registration.registrar import Registrar
from utils.image_files import read_gray, write_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)


parser.add_argument("fixed")


parser.add_argument("moving")


parser.add_argument("--weights", help="checkpoint (default: the weights that ship)")


parser.add_argument("--out", type=Path, default=Path("from_python"))


args = parser.parse_args()
# %% Load the network once, register as many pairs as you like. Images are paths or arrays (H, W) or (H, W, 3)
registrar = Registrar(args.weights)
result = registrar.register(args.fixed, args.moving)


print(result)


# %% It says when it failed, and why
if result.status == "failed":
    print("no transform:", result.reason)
    sys.exit(0)


# %% The matrix takes fixed pixels (x, y) to moving pixels, at the images' own sizes
x, y, w = result.matrix @ [100.0, 80.0, 1.0]


print(f"the fixed pixel (100, 80) is seen at ({x / w:.1f}, {y / w:.1f}) of the moving image")


# %% The matches, and which of them agree with the matrix
fixed_points, moving_points, inliers = result.matches


print(
    f"{inliers.sum()} of {len(inliers)} matches agree; the first: {np.round(fixed_points[inliers][0], 1)} and "
    f"{np.round(moving_points[inliers][0], 1)}"
)


# %% The moving image in the fixed frame, as an array (float32 in [0, 1]) ...
write_image(args.out / "registered.png", result.warp())


# %% ... and so any other frame of the same examination, here the negative of the moving image
write_image(args.out / "negative_registered.png", result.warp(1.0 - read_gray(args.moving)))


# %% A figure of it all; in a notebook, `result.plot()` alone shows it
result.plot(args.out / "overview.png")


print("written:", *sorted(path.name for path in args.out.iterdir()))
