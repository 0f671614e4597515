"""Write pairs of a round eye seen by a fundus camera from two directions, with the exact correspondence of every pixel.

    python -m synthesis.camera_pairs --out data/camera --eyes 24 --modes cffa cfoct

Each pair is one invented eye in two modalities, looked at in two directions, turned by any angle, overlapping by at least
--overlap; the moving field may be smaller, and its tissue may be displaced a little (--swelling). Below ``out/<mode>`` the
files have the layout of real pairs (``dataset/real_pairs.py``), so everything that takes real pairs takes them, with

- ``<eye>_1/001_01.txt, 001_02.txt``: corresponding points on an even grid over all that both images show, so that a mean
  landmark error is the mean error of the dense map;
- ``<eye>_1/001_map.npz``: ``moving_xy`` (H, W, 2) float32, where each fixed pixel lies in the moving image, NaN where the moving
  image does not show it.
"""

from __future__ import annotations

import argparse
import io
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
from synthesis.scene import round_field
from synthesis.vessel_drawing import Eye
from synthesis.vessel_growth import grow_eye
from utils.errors import InputError, run_script
from utils.files import write_bytes_atomically, write_text_atomically
from utils.image_files import write_image

# Widths of the moving image on the retina, disc diameters, and how it is drawn.
MOVING = {
    "cffa": ((7.0, 9.5), render_fa),
    "cfoct": ((5.0, 7.5), render_oct),
    "cfocta": ((3.6, 5.0), render_octa),
}
FIXED_FIELD_DD = (7.5, 9.5)
ENTRANCE_SPREAD = 0.05  # of the point of entrance about the axis, radii of the retina: 0.6 mm
LANDMARK_STEP_PX = 20
DESCRIPTION = "camera_pairs.yaml"
MAX_ATTEMPTS = 3000  # at cameras with the overlap that is asked for
# Of the random streams: none of those that synthesis.eyes draws from, or a seed would give the eyes of the training set.
FIRST_STREAM = 1000


@dataclass(frozen=True)
class PairDraw:
    """How pairs are drawn.

    Attributes:
        rotation_deg: the moving camera is turned by up to this angle either way.
        overlap: least overlap, as a share of the retina in the image that shows less of it.
        largest_overlap: most of it, so that pairs with another gaze come out.
        swelling_px: largest displacement of tissue, pixels at 512 of the moving image; 0 = none.
        size: side of the images in pixels.
        seed: of the draws.
    """

    rotation_deg: float = 180.0
    overlap: float = 0.5
    largest_overlap: float = 0.85
    swelling_px: float = 0.0
    size: int = 512
    seed: int = 0


class CameraPair(NamedTuple):
    """A pair: pictures (H, W[, 3]) in [0, 1], and ``moving_xy`` (H, W, 2) of each fixed pixel, NaN where it is not seen."""

    fixed: np.ndarray
    moving: np.ndarray
    moving_xy: np.ndarray


def map_fixed_pixels(
    fixed: FundusCamera, moving: FundusCamera, fixed_field: np.ndarray, moving_field: np.ndarray
) -> np.ndarray:
    """Where each fixed pixel lies in the moving image, (H, W, 2), NaN outside of either field of view (H, W) in [0, 1]."""
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
    """Overlap as a share of the retina in the image that shows less of it: of each field, the part that lies in the other."""
    seen = np.isfinite(moving_xy[..., 0])
    of_fixed = seen.sum() / max((fixed_field > 0.5).sum(), 1)
    # What the overlap covers of the moving image: the areas of the moving cells under the fixed pixels.
    across, down = (np.diff(moving_xy, axis=axis) for axis in (1, 0))
    area = across[:-1, :, 0] * down[:, :-1, 1] - across[:-1, :, 1] * down[:, :-1, 0]
    of_moving = np.nansum(np.abs(area)) / max((moving_field > 0.5).sum(), 1)
    return float(max(of_fixed, of_moving))


def draw_swellings(
    centre: np.ndarray, px_per_dd: float, size: int, largest_px: float, rng: np.random.Generator
) -> np.ndarray:
    """Tissue displacements as :class:`FundusCamera` takes them: a few, some disc diameters wide, too gentle to fold."""
    if largest_px <= 0:
        return np.zeros((0, 5))
    count = int(rng.integers(2, 5))
    heading, reach = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.8, 1.6, count)
    places, length = centre + rng.normal(0, 1.5, (count, 2)), rng.uniform(0.4, 1.0, count)
    arrows = length[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    # They add up where they overlap: what is asked for is the largest sum.
    ys, xs = np.mgrid[-5:5:41j, -5:5:41j]
    grid = np.stack([xs, ys], axis=-1).reshape(-1, 1, 2) + centre
    falloff = np.exp(-0.5 * ((grid - places) ** 2).sum(axis=2) / reach**2)
    largest = np.linalg.norm(falloff @ arrows, axis=1).max()
    arrows *= rng.uniform(0.7, 0.95) * largest_px * size / 512.0 / px_per_dd / largest
    return np.column_stack([places, arrows, reach])


def draw_cameras(
    eye: Eye, moving_field_dd: tuple[float, float], draw: PairDraw, rng: np.random.Generator
) -> tuple[FundusCamera, FundusCamera]:
    """Two gazes at one eye, whatever their overlap."""
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
    """One pair; it depends on the mode, the eye and the draw alone.

    Raises:
        InputError: no cameras have the overlap that is asked for.
    """
    rng = np.random.default_rng(
        [draw.seed, eye_number, FIRST_STREAM + 1 + sorted(MOVING).index(mode)]
    )
    eye = grow_eye(np.random.default_rng([draw.seed, eye_number, FIRST_STREAM]))
    field_range, render = MOVING[mode]
    fixed_field = round_field(draw.size, rng)
    square = np.ones((draw.size, draw.size), np.float32)
    round_or_square = round_field(draw.size, rng) if mode == "cffa" else square
    for _ in range(MAX_ATTEMPTS):
        moving_field = round_or_square
        cameras = draw_cameras(eye, field_range, draw, rng)
        shown = overlap_of(
            map_fixed_pixels(*cameras, fixed_field, moving_field), fixed_field, moving_field
        )
        if not draw.overlap <= shown <= draw.largest_overlap:
            continue
        spots, least_width = draw_lesions(eye.fovea, rng), rng.uniform(0.008, 0.018)
        fixed, moving = (
            paint(draw_scene(eye, camera, spots, least_width, field, rng), rng)
            for camera, field, paint in zip(
                cameras, (fixed_field, moving_field), (render_cf, render), strict=True
            )
        )
        if mode != "cffa":
            # A scan may cover less than its frame, which only its picture tells.
            moving_field = estimate_field_of_view(
                moving.reshape(draw.size, draw.size, -1).max(axis=2)
            ).astype(np.float32)
        moving_xy = map_fixed_pixels(*cameras, fixed_field, moving_field)
        if draw.overlap <= overlap_of(moving_xy, fixed_field, moving_field) <= draw.largest_overlap:
            return CameraPair(fixed, moving, moving_xy)
    raise InputError(
        f"--overlap {draw.overlap:g} --largest_overlap {draw.largest_overlap:g}: no two cameras of {mode} came to "
        f"that in {MAX_ATTEMPTS} attempts; widen the range (0.3 to 0.9 is common)."
    )


def landmarks_of(
    moving_xy: np.ndarray, step_px: int = LANDMARK_STEP_PX
) -> tuple[np.ndarray, np.ndarray]:
    """Corresponding points (N, 2) of both images on an even grid of fixed pixels over the overlap."""
    grid = np.zeros(moving_xy.shape[:2], bool)
    grid[step_px // 2 :: step_px, step_px // 2 :: step_px] = True
    ys, xs = np.nonzero(grid & np.isfinite(moving_xy[..., 0]))
    return np.column_stack([xs, ys]).astype(float), moving_xy[ys, xs].astype(float)


def write_pair(folder: Path, pair: CameraPair) -> None:
    """Write one pair in the numbered layout, and its dense map."""
    for role, picture, points in zip(
        ("01", "02"), (pair.fixed, pair.moving), landmarks_of(pair.moving_xy), strict=True
    ):
        write_image(folder / f"001_{role}.png", picture)
        write_points(folder / f"001_{role}.txt", points)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, moving_xy=pair.moving_xy.astype(np.float32))
    write_bytes_atomically(folder / "001_map.npz", buffer.getvalue())


def _write_one(job: tuple[Path, str, int, PairDraw]) -> Path:
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
    """Write ``eyes`` pairs of each mode below ``root``.

    Returns:
        The folders of the modes.

    Raises:
        InputError: impossible numbers, an unknown mode, or a folder that is not empty.
    """
    unknown = [mode for mode in modes if mode not in MOVING]
    if unknown:
        raise InputError(f"--modes {' '.join(unknown)}: choose from {', '.join(MOVING)}.")
    if (
        eyes < 1
        or not 0.05 <= draw.overlap < draw.largest_overlap <= 1
        or not 64 <= draw.size <= 4096
    ):
        raise InputError(
            "--eyes must be at least 1, --overlap at least 0.05 and below --largest_overlap, which is at most 1, "
            "and --size from 64 to 4096."
        )
    if not 0 <= draw.swelling_px <= 10 or not 0 <= draw.rotation_deg <= 180 or draw.seed < 0:
        raise InputError(
            "--swelling must lie between 0 and 10 px, --rotation between 0 and 180 degrees, --seed at least 0."
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: not an empty folder; give another --out.")
    jobs = [(root, mode, number, draw) for mode in modes for number in range(1, eyes + 1)]
    done = run_in_processes(_write_one, jobs, processes)
    for _ in tqdm(done, total=len(jobs), desc="camera pairs", unit="pair", disable=not progress):
        pass
    write_text_atomically(root / DESCRIPTION, f"eyes: {eyes}\nmodes: {modes}\ndraw: {vars(draw)}\n")
    return [root / mode for mode in modes]


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    drawn = PairDraw()
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
        "--rotation", type=float, default=drawn.rotation_deg, help="largest rotation, degrees"
    )
    parser.add_argument(
        "--overlap", type=float, default=drawn.overlap, help="least overlap of the fields of view"
    )
    parser.add_argument(
        "--largest_overlap", type=float, default=drawn.largest_overlap, help="most overlap"
    )
    parser.add_argument(
        "--swelling",
        type=float,
        default=drawn.swelling_px,
        help="largest displacement of tissue, px at 512",
    )
    parser.add_argument("--size", type=int, default=drawn.size, help="side of the images, pixels")
    parser.add_argument("--seed", type=int, default=drawn.seed)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    draw = PairDraw(
        args.rotation, args.overlap, args.largest_overlap, args.swelling, args.size, args.seed
    )
    folders = write_camera_set(args.out, args.eyes, args.modes, draw, args.processes)
    print("written: " + ", ".join(map(str, folders)))


if __name__ == "__main__":
    run_script(main)
