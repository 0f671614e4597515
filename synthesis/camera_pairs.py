"""Write pairs of views of a spherical retina by two fundus cameras, with exact correspondences.

    python -m synthesis.camera_pairs --out data/camera --eyes 24 --modes cffa cfoct

Each pair shows one generated eye in two modalities, from two directions, rotated by any angle and
overlapping by at least --overlap. The moving field may be smaller, and its tissue may be displaced
(--swelling). The files below ``out/<mode>`` have the numbered layout of real pairs
(``dataset/layouts/numbered.py``), with

- ``<eye>_1/001_01.txt, 001_02.txt``: corresponding points on a regular grid over the overlap, so
  that the mean landmark error estimates the mean error over the overlap;
- ``<eye>_1/001_map.npz``: ``moving_xy`` (H, W, 2) float32, the moving pixel (x, y) of each fixed
  pixel, NaN outside of the overlap.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from geometry.field_of_view import estimate_field_of_view
from geometry.point_files import write_points
from geometry.points import inside, pixel_grid
from synthesis.angiogram import render_fa
from synthesis.colour_fundus import render_cf
from synthesis.eyes import draw_scene
from synthesis.fundus_camera import FundusCamera, aim
from synthesis.generated_set import run_in_processes
from synthesis.lesions import draw_lesions
from synthesis.oct_scan import render_oct, render_octa
from synthesis.scene import Scene, round_field
from synthesis.vessel_drawing import Eye
from synthesis.vessel_growth import grow_eye
from utils.errors import InputError, run_script
from utils.files import write_bytes_atomically, write_text_atomically
from utils.image_files import write_image


class MovingModality(NamedTuple):
    """The moving image of a mode.

    Attributes:
        field_dd: range of its width on the retina, disc diameters.
        render: renders a scene.
        round_field: whether its field of view is that of a fundus camera; otherwise it is a scan,
            whose field is estimated from the rendered image.
    """

    field_dd: tuple[float, float]
    render: Callable[[Scene, np.random.Generator], np.ndarray]
    round_field: bool


MOVING = {
    "cffa": MovingModality(field_dd=(7.0, 9.5), render=render_fa, round_field=True),
    "cfoct": MovingModality(field_dd=(5.0, 7.5), render=render_oct, round_field=False),
    "cfocta": MovingModality(field_dd=(3.6, 5.0), render=render_octa, round_field=False),
}
FIXED_FIELD_DD = (7.5, 9.5)  # range of the width of the fixed image, disc diameters
ENTRANCE_SPREAD = 0.05  # std of the point of entrance about the axis, radii of the retina: 0.6 mm
LANDMARK_STEP_PX = 20  # distance of the landmarks in the fixed image
DESCRIPTION = "camera_pairs.yaml"
MAX_ATTEMPTS = 3000  # draws of two cameras until their overlap is in the range
# First of the random streams. Those of synthesis.eyes must not be used: equal seeds would give the
# eyes of the training set.
FIRST_STREAM = 1000


@dataclass(frozen=True)
class PairDraw:
    """How pairs are drawn.

    Attributes:
        rotation_deg: largest rotation of the moving camera in either direction.
        overlap: least overlap, as a share of the retina in the image that shows less of it.
        largest_overlap: largest overlap; below 1, so that the cameras have different directions.
        swelling_px: largest displacement of tissue, px at 512 of the moving image; 0 = none.
        size: side of the images, pixels.
        seed: of the draws.
    """

    rotation_deg: float = 180.0
    overlap: float = 0.5
    largest_overlap: float = 0.85
    swelling_px: float = 0.0
    size: int = 512
    seed: int = 0


class CameraPair(NamedTuple):
    """A pair with dense correspondence.

    Attributes:
        fixed, moving: (H, W) or (H, W, 3) RGB float32 in [0, 1].
        moving_xy: (H, W, 2) float64, moving pixel (x, y) of each fixed pixel, NaN outside of the
            overlap.
    """

    fixed: np.ndarray
    moving: np.ndarray
    moving_xy: np.ndarray


def map_fixed_pixels(
    fixed: FundusCamera, moving: FundusCamera, fixed_field: np.ndarray, moving_field: np.ndarray
) -> np.ndarray:
    """Map every fixed pixel into the moving image.

    Args:
        fixed, moving: cameras; the fixed one has no swellings.
        fixed_field, moving_field: (H, W) in [0, 1], fields of view.

    Returns:
        (H, W, 2) float64, moving pixels (x, y), NaN outside of either field of view.
    """
    size = (fixed.size, fixed.size)
    mapped = moving.to_pixels(fixed.to_retina(pixel_grid(size).double().numpy())).reshape(*size, 2)
    x, y = np.clip(np.rint(mapped), 0, moving.size - 1).astype(int).transpose(2, 0, 1)
    seen = (
        inside(mapped, (moving.size, moving.size))
        & (moving_field[y, x] > 0.5)
        & (fixed_field > 0.5)
    )
    return np.where(seen[..., None], mapped, np.nan)


def overlap_of(moving_xy: np.ndarray, fixed_field: np.ndarray, moving_field: np.ndarray) -> float:
    """Overlap as a share of the retina in the image that shows less of it, in [0, 1].

    Args:
        moving_xy: (H, W, 2), from :func:`map_fixed_pixels`.
        fixed_field, moving_field: (H, W) in [0, 1], fields of view.
    """
    seen = np.isfinite(moving_xy[..., 0])
    of_fixed = seen.sum() / max((fixed_field > 0.5).sum(), 1)
    # Area of the overlap in the moving image: sum of the areas to which fixed pixels are mapped.
    across, down = (np.diff(moving_xy, axis=axis) for axis in (1, 0))
    area = across[:-1, :, 0] * down[:, :-1, 1] - across[:-1, :, 1] * down[:, :-1, 0]
    of_moving = np.nansum(np.abs(area)) / max((moving_field > 0.5).sum(), 1)
    return float(max(of_fixed, of_moving))


def draw_swellings(
    centre: np.ndarray, px_per_dd: float, size: int, largest_px: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw smooth tissue displacements without folds.

    Args:
        centre: (2,) retina point around which they lie, disc diameters.
        px_per_dd: magnification of the image, pixels per disc diameter.
        size: side of the image, pixels.
        largest_px: upper limit of the displacement, px at 512; 0 gives none.
        rng: of the draws.

    Returns:
        (K, 5), see ``swellings`` of :class:`synthesis.fundus_camera.FundusCamera`.
    """
    if largest_px <= 0:
        return np.zeros((0, 5))
    count = int(rng.integers(2, 5))
    heading, reach = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.8, 1.6, count)
    places, length = centre + rng.normal(0, 1.5, (count, 2)), rng.uniform(0.4, 1.0, count)
    arrows = length[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    # Overlapping displacements add up; the limit is that of the sum.
    ys, xs = np.mgrid[-5:5:41j, -5:5:41j]
    grid = np.stack([xs, ys], axis=-1).reshape(-1, 1, 2) + centre
    falloff = np.exp(-0.5 * ((grid - places) ** 2).sum(axis=2) / reach**2)
    largest = np.linalg.norm(falloff @ arrows, axis=1).max()
    arrows *= rng.uniform(0.7, 0.95) * largest_px * size / 512.0 / px_per_dd / largest
    return np.column_stack([places, arrows, reach])


def draw_cameras(
    eye: Eye, moving_field_dd: tuple[float, float], draw: PairDraw, rng: np.random.Generator
) -> tuple[FundusCamera, FundusCamera]:
    """Draw a fixed and a moving camera for an eye, with any overlap."""
    pole = 0.5 * eye.fovea
    centre = eye.fovea * rng.uniform(0.2, 0.8) + rng.normal(0, 0.7, 2)
    heading, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.6)
    aside = rng.uniform(0.5, 5.0) * np.array([np.cos(heading), np.sin(heading)])
    shifts = rng.normal(0, ENTRANCE_SPREAD, (2, 2))
    fixed = aim(
        pole,
        centre,
        rng.uniform(-0.1, 0.1),
        shifts[0],
        rng.uniform(*FIXED_FIELD_DD),
        bend,
        draw.size,
    )
    field_dd, roll = (
        rng.uniform(*moving_field_dd),
        np.radians(rng.uniform(-draw.rotation_deg, draw.rotation_deg)),
    )
    swellings = draw_swellings(
        centre + 0.5 * aside, draw.size / field_dd, draw.size, draw.swelling_px, rng
    )
    return fixed, aim(pole, centre + aside, roll, shifts[1], field_dd, bend, draw.size, swellings)


def draw_pair(mode: str, eye_number: int, draw: PairDraw) -> CameraPair:
    """Draw one pair, a function of the arguments alone.

    Args:
        mode: key of ``MOVING``.
        eye_number: from 1.
        draw: settings of the draw.

    Raises:
        InputError: no two cameras with an overlap in the range were found.
    """
    rng = np.random.default_rng(
        [draw.seed, eye_number, FIRST_STREAM + 1 + sorted(MOVING).index(mode)]
    )
    eye = grow_eye(np.random.default_rng([draw.seed, eye_number, FIRST_STREAM]))
    modality = MOVING[mode]
    fixed_field = round_field(draw.size, rng)
    square = np.ones((draw.size, draw.size), np.float32)
    drawn_field = round_field(draw.size, rng) if modality.round_field else square
    for _ in range(MAX_ATTEMPTS):
        moving_field = drawn_field
        cameras = draw_cameras(eye, modality.field_dd, draw, rng)
        shown = overlap_of(
            map_fixed_pixels(*cameras, fixed_field, moving_field), fixed_field, moving_field
        )
        if not draw.overlap <= shown <= draw.largest_overlap:
            continue
        spots, least_width = draw_lesions(eye.fovea, rng), rng.uniform(0.008, 0.018)
        fixed, moving = (
            paint(draw_scene(eye, camera, spots, least_width, field, rng), rng)
            for camera, field, paint in zip(
                cameras, (fixed_field, moving_field), (render_cf, modality.render), strict=True
            )
        )
        if not modality.round_field:
            # A scan may cover a part of its frame only.
            moving_field = estimate_field_of_view(
                moving.reshape(draw.size, draw.size, -1).max(axis=2)
            ).astype(np.float32)
        moving_xy = map_fixed_pixels(*cameras, fixed_field, moving_field)
        if draw.overlap <= overlap_of(moving_xy, fixed_field, moving_field) <= draw.largest_overlap:
            return CameraPair(fixed, moving, moving_xy)
    raise InputError(
        f"--overlap {draw.overlap:g} --largest_overlap {draw.largest_overlap:g}: no two cameras of "
        f"{mode} in {MAX_ATTEMPTS} attempts had such an overlap; widen the range (0.3 to 0.9 is "
        "common)."
    )


def landmarks_of(
    moving_xy: np.ndarray, step_px: int = LANDMARK_STEP_PX
) -> tuple[np.ndarray, np.ndarray]:
    """Corresponding points on a regular grid of fixed pixels over the overlap.

    Args:
        moving_xy: (H, W, 2), from :func:`map_fixed_pixels`.
        step_px: distance of the points, fixed pixels.

    Returns:
        Fixed and moving points, (N, 2) float64 each, pixels (x, y).
    """
    grid = np.zeros(moving_xy.shape[:2], bool)
    grid[step_px // 2 :: step_px, step_px // 2 :: step_px] = True
    ys, xs = np.nonzero(grid & np.isfinite(moving_xy[..., 0]))
    return np.column_stack([xs, ys]).astype(float), moving_xy[ys, xs].astype(float)


def write_pair(folder: Path, pair: CameraPair) -> None:
    """Write one pair in the numbered layout, and its dense map; ``folder`` is that of the pair."""
    for role, picture, points in zip(
        ("01", "02"), (pair.fixed, pair.moving), landmarks_of(pair.moving_xy), strict=True
    ):
        write_image(folder / f"001_{role}.png", picture)
        write_points(folder / f"001_{role}.txt", points)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, moving_xy=pair.moving_xy.astype(np.float32))
    write_bytes_atomically(folder / "001_map.npz", buffer.getvalue())


def _write_one(job: tuple[Path, str, int, PairDraw]) -> Path:
    """Draw and write one pair; returns its folder."""
    root, mode, eye_number, draw = job
    folder = root / mode / f"{eye_number}_1"
    write_pair(folder, draw_pair(mode, eye_number, draw))
    return folder


def write_camera_set(
    root: Path,
    eyes: int,
    modes: list[str],
    draw: PairDraw,
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Write pairs of several modes.

    Args:
        root: folder to write; must be empty or missing.
        eyes: pairs of each mode.
        modes: keys of ``MOVING``.
        draw: settings of the draws.
        processes: see :func:`synthesis.generated_set.run_in_processes`.
        progress: show a progress bar.

    Returns:
        The folders of the modes.

    Raises:
        InputError: numbers out of range, an unknown mode, or a folder that is not empty.
    """
    _check_settings(eyes, modes, draw)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: not an empty folder; give another --out.")
    jobs = [(root, mode, number, draw) for mode in modes for number in range(1, eyes + 1)]
    done = run_in_processes(_write_one, jobs, processes)
    for _ in tqdm(done, total=len(jobs), desc="camera pairs", unit="pair", disable=not progress):
        pass
    write_text_atomically(root / DESCRIPTION, f"eyes: {eyes}\nmodes: {modes}\ndraw: {vars(draw)}\n")
    return [root / mode for mode in modes]


def _check_settings(eyes: int, modes: list[str], draw: PairDraw) -> None:
    """Raise an ``InputError`` for an unknown mode or a number out of its range."""
    unknown = [mode for mode in modes if mode not in MOVING]
    if unknown:
        raise InputError(f"--modes {' '.join(unknown)}: choose from {', '.join(MOVING)}.")
    if (
        eyes < 1
        or not 0.05 <= draw.overlap < draw.largest_overlap <= 1
        or not 64 <= draw.size <= 4096
    ):
        raise InputError(
            "--eyes must be at least 1, --overlap at least 0.05 and below --largest_overlap, which "
            "is at most 1, and --size from 64 to 4096."
        )
    if not 0 <= draw.swelling_px <= 10 or not 0 <= draw.rotation_deg <= 180 or draw.seed < 0:
        raise InputError(
            "--swelling must lie between 0 and 10 px, --rotation between 0 and 180 degrees, --seed "
            "at least 0."
        )


def main() -> None:
    """Write a set of camera pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = PairDraw()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eyes", type=int, default=24)
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["cffa", "cfoct"],
        metavar="MODE",
        help=f"of {', '.join(MOVING)}",
    )
    parser.add_argument(
        "--rotation", type=float, default=default.rotation_deg, help="largest rotation, degrees"
    )
    parser.add_argument(
        "--overlap", type=float, default=default.overlap, help="least overlap of the fields"
    )
    parser.add_argument(
        "--largest_overlap", type=float, default=default.largest_overlap, help="largest overlap"
    )
    parser.add_argument(
        "--swelling",
        type=float,
        default=default.swelling_px,
        help="largest tissue displacement, px at 512",
    )
    parser.add_argument("--size", type=int, default=default.size, help="side of the images, pixels")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    draw = PairDraw(
        rotation_deg=args.rotation,
        overlap=args.overlap,
        largest_overlap=args.largest_overlap,
        swelling_px=args.swelling,
        size=args.size,
        seed=args.seed,
    )
    folders = write_camera_set(args.out, args.eyes, args.modes, draw, args.processes)
    print("written: " + ", ".join(map(str, folders)))


if __name__ == "__main__":
    run_script(main)
