"""Samples of the user's generated layout: folders of aligned images of one eye, found, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset.junctions import find_junctions, gaussian_heatmap
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import fit_within
from utils.errors import InputError
from utils.image_files import read_gray, read_mask, resize_image

# Per mode: suffixes of the fixed image, the moving image and the vessel mask; the first that exists counts.
MODE_FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "cffa": (("cf_512", "cf"), ("fa_gen", "fa"), ("seg",)),
    "cfoct": (("cf_512", "cf"), ("oct_gen", "oct"), ("seg",)),
    "octfa": (("oct_gen", "oct"), ("fa_gen", "fa"), ("seg",)),
    "cfocta": (("cf_clip_512", "cf_clip"), ("octa_gen", "octa"), ("seg_clip",)),
}
MAX_VESSEL_SHARE = 0.5


@dataclass(frozen=True)
class Sample:
    """One folder in one mode. ``key`` is unique within a data set and safe as a file name; ``eye`` groups visits; ``n_bytes``
    is the size of its files when it was found, by which a change under a run is noticed."""

    key: str
    eye: str
    mode: str
    fixed: Path
    moving: Path
    mask: Path
    n_bytes: int | None = None


def discover_samples(root: str | Path, modes: list[str]) -> tuple[list[Sample], list[str]]:
    """Find all samples below ``root``.

    Returns:
        Samples in a fixed order, and one line for every folder that lacks a file of a mode.

    Raises:
        InputError: no such folder, no sample folders, unknown mode, or a mode that no folder can serve.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"{root}: no such data folder; `python -m synthesis --out {root}` makes one."
        )
    folders = sorted(
        (p for p in root.iterdir() if p.is_dir() and "_" in p.name), key=_natural_order
    )
    if not folders:
        raise InputError(f"{root}: holds no sample folders named <num>_<letter> (for example 1_A).")
    samples, lacking = [], []
    for mode in modes:
        if mode not in MODE_FILES:
            raise InputError(f"mode '{mode}' is unknown; choose from {', '.join(MODE_FILES)}.")
        found_before = len(samples)
        for folder in folders:
            roles = [_first_existing(folder, suffixes) for suffixes in MODE_FILES[mode]]
            missing = [
                _candidates(folder, suffixes)
                for suffixes, path in zip(MODE_FILES[mode], roles, strict=True)
                if path is None
            ]
            if missing:
                lacking.append(f"{folder}: no {' and no '.join(missing)} for mode {mode}")
            else:
                samples.append(
                    Sample(
                        f"{mode}_{folder.name}",
                        folder.name.split("_")[0],
                        mode,
                        *roles,
                        _bytes_of(roles),
                    )
                )
        if len(samples) == found_before:
            raise InputError(
                f"{root}: no folder has all files of mode {mode}. {lacking[-1]}. "
                "Add the files or leave the mode out of --mode."
            )
    return samples, lacking


def _natural_order(path: Path) -> tuple[int, str]:
    number = path.name.split("_")[0]
    return (int(number) if number.isdigit() else 10**9, path.name)


def _first_existing(folder: Path, suffixes: tuple[str, ...]) -> Path | None:
    paths = (folder / f"{folder.name}_{suffix}.png" for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)


def _bytes_of(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _candidates(folder: Path, suffixes: tuple[str, ...]) -> str:
    return " or ".join(f"{folder.name}_{suffix}.png" for suffix in suffixes)


def load_sample(sample: Sample, long_side: int, junction_sigma_px: float) -> torch.Tensor:
    """Read a sample at its working size: the *own frame* in which its value map lives.

    Returns:
        (6, H, W) uint8: fixed, moving, vessel mask (255 = vessel), junction heatmap, fields of view of both (0 / 255).

    Raises:
        InputError: an unreadable file, a file that changed since it was found, images of different size, or a mask that is
            mostly "vessel".
    """
    fixed, moving, mask = read_gray(sample.fixed), read_gray(sample.moving), read_mask(sample.mask)
    problems = problems_between(sample, fixed, moving, mask)
    if problems:
        raise InputError(problems[0])
    size = fit_within(fixed.shape, long_side)
    fields = [estimate_field_of_view(image) for image in (fixed, moving)]
    rasters = [resize_image(raster, size) for raster in (fixed, moving, mask, *fields)]
    # A thin vessel covers a pixel in part after shrinking: a third is enough to keep it.
    rasters[2:] = [rasters[2] > 0.33, rasters[3] > 0.5, rasters[4] > 0.5]
    heatmap = gaussian_heatmap(find_junctions(rasters[2]), size, junction_sigma_px)
    stack = np.stack([*rasters[:3], heatmap, *rasters[3:]]).astype(np.float32)
    return torch.from_numpy((np.clip(stack, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def problems_between(
    sample: Sample, fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray
) -> list[str]:
    """What is wrong with the images of a sample taken together: one line each, with the remedy.

    Args:
        fixed, moving: (H, W); mask: (H, W) bool, as read.
    """
    problems = []
    if sample.n_bytes not in (None, _bytes_of([sample.fixed, sample.moving, sample.mask])):
        problems.append(
            f"{sample.fixed.parent}: files changed since the run began; put them back, or begin a new run."
        )
    for path, raster in ((sample.moving, moving), (sample.mask, mask)):
        if raster.shape != fixed.shape:
            problems.append(
                f"{path}: {raster.shape[1]} x {raster.shape[0]} px, but {sample.fixed.name} has "
                f"{fixed.shape[1]} x {fixed.shape[0]}; images of a generated folder must be aligned, so resize "
                "or regenerate it."
            )
    if not mask.any():
        problems.append(
            f"{sample.mask}: no vessel is marked; masks must be white on black. Mend or remove this folder."
        )
    elif mask.mean() > MAX_VESSEL_SHARE:
        problems.append(
            f"{sample.mask}: {mask.mean():.0%} of the mask is marked; vessels must be white on black, "
            "so invert the mask."
        )
    return problems
