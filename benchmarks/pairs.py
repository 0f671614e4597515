"""Pairs of image files for the benchmarks: real ones, or synthesised ones where there are none."""

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
    """Two image files of one eye."""

    name: str
    fixed: Path
    moving: Path


def write_pairs(
    folder: Path, data: str | None, count: int, side: int, seed: int
) -> list[WrittenPair]:
    """Write ``count`` pairs with a long side of ``side`` pixels, the moving image turned by a random angle.

    Args:
        folder: where to.
        data: root of real pairs, which are repeated when there are fewer; None synthesises CF-FA pairs.
        seed: of the angles and of the eyes.
    """
    rng, pairs = np.random.default_rng(seed), []
    for number, (fixed, moving) in zip(
        range(count), _images(folder, data, count, side, seed), strict=True
    ):
        H_moving_to_canvas, canvas = turn_about_centre(
            moving.shape, float(rng.uniform(0, 360)), 1.0
        )
        moving = register_onto_fixed(moving, np.linalg.inv(H_moving_to_canvas), canvas)
        paths = [folder / f"{number}_{role}.png" for role in ("fixed", "moving")]
        for path, image in zip(paths, (fixed, moving), strict=True):
            write_image(path, resize_image(image, fit_within(image.shape, side)))
        pairs.append(WrittenPair(str(number), *paths))
    return pairs


def _images(
    folder: Path, data: str | None, count: int, side: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    if data is not None:
        real = load_real_pairs(data, Path(data).name)
        return [real[number % len(real)].images() for number in range(count)]
    root = folder / "eyes"
    return [
        tuple(read_gray(root / name / file_names(name, side)[role]) for role in ("cf", "fa"))
        for name in write_generated_set(root, count, seed, side, progress=False)
    ]
