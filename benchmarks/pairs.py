"""Write pairs of image files for the benchmarks: from real pairs, or synthesised ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.real_pairs import load_real_pairs
from geometry.matrices import fit_within, turn_about_centre
from geometry.rasters import register_onto_fixed
from synthesis.eyes import file_names
from synthesis.generated_set import write_generated_set
from utils.image_files import read_gray, resize_image, write_image


class WrittenPair(NamedTuple):
    """Name of a pair and its two image files."""

    name: str
    fixed: Path
    moving: Path


def write_pairs(
    folder: Path, data: str | None, count: int, side: int, seed: int
) -> list[WrittenPair]:
    """Write pairs of grey images, the moving image rotated by a random angle in [0, 360) degrees.

    Args:
        folder: where the files are written.
        data: folder of real pairs, repeated when it holds fewer than ``count``; None synthesises
            CF-FA pairs.
        count: number of pairs.
        side: long side of every image file, pixels.
        seed: seed of the angles and of the synthesised eyes.
    """
    rng, pairs = np.random.default_rng(seed), []
    images = _read_images(folder, data, count, side, seed)
    for number, (fixed, moving) in enumerate(images):
        angle_deg = float(rng.uniform(0, 360))
        H_moving_to_canvas, canvas = turn_about_centre(moving.shape, angle_deg, 1.0)
        moving = register_onto_fixed(moving, np.linalg.inv(H_moving_to_canvas), canvas)
        pair = WrittenPair(
            str(number), folder / f"{number}_fixed.png", folder / f"{number}_moving.png"
        )
        for path, image in ((pair.fixed, fixed), (pair.moving, moving)):
            write_image(path, resize_image(image, fit_within(image.shape, side)))
        pairs.append(pair)
    return pairs


def _read_images(
    folder: Path, data: str | None, count: int, side: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """``count`` pairs of fixed and moving images, (H, W) float32 in [0, 1] each."""
    if data is not None:
        real = load_real_pairs(data, Path(data).name)
        return [real[number % len(real)].images() for number in range(count)]
    root, images = folder / "eyes", []
    for name in write_generated_set(root, count, seed, side, progress=False):
        files = file_names(name, side)
        images.append((read_gray(root / name / files["cf"]), read_gray(root / name / files["fa"])))
    return images
