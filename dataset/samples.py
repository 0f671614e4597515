"""Samples of the generated layout: find, read and check folders of aligned images of one eye."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from dataset.junctions import find_junctions, gaussian_heatmap
from dataset.view_sources import GENERATED, Provenance, bytes_of_files, state_of_files
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import fit_within, size_of_image
from utils.errors import InputError
from utils.image_files import read_gray, read_mask, resize_image


class ModeFiles(NamedTuple):
    """File name suffixes of one mode; of several suffixes the first that exists is read.

    Attributes:
        fixed, moving, mask: suffixes of the fixed image, the moving image and the vessel mask; a
            file is named ``<folder>_<suffix>.png``.
    """

    fixed: tuple[str, ...]
    moving: tuple[str, ...]
    mask: tuple[str, ...]


# A mode is a kind of generated pair. To train on one whose images exist, add a line here; the
# synthesiser renders the kinds of synthesis/eyes.py and synthesis/camera_pairs.py.
MODE_FILES = {
    "cffa": ModeFiles(fixed=("cf_512", "cf"), moving=("fa_gen", "fa"), mask=("seg",)),
    "cfoct": ModeFiles(fixed=("cf_512", "cf"), moving=("oct_gen", "oct"), mask=("seg",)),
    "octfa": ModeFiles(fixed=("oct_gen", "oct"), moving=("fa_gen", "fa"), mask=("seg",)),
    "cfocta": ModeFiles(
        fixed=("cf_clip_512", "cf_clip"), moving=("octa_gen", "octa"), mask=("seg_clip",)
    ),
}
MAX_VESSEL_SHARE = 0.5  # of the pixels; vessels cover 4 to 11 % (CHASE_DB1, HRF), so more: inverted
MIN_VESSEL_COVERAGE = 0.33  # of a pixel after shrinking, to count as vessel; keeps thin vessels


class Channel(IntEnum):
    """Channels of the (6, H, W) stack of an aligned sample, which one call can warp."""

    FIXED = 0
    MOVING = 1
    MASK = 2
    HEATMAP = 3
    FIXED_FIELD = 4
    MOVING_FIELD = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One folder in one mode; a :class:`dataset.view_sources.ViewSource`.

    Attributes:
        key: unique within a data set and safe as a file name.
        eye: number of the eye; several visits of one eye share it.
        mode: key of ``MODE_FILES``.
        fixed, moving, mask: paths of the images and of the vessel mask.
        n_bytes: size of the three files together when they were found, to notice a change during a
            run; None skips that check.
        form, has_junctions: see :class:`dataset.view_sources.ViewSource`.
    """

    key: str
    eye: str
    mode: str
    fixed: Path
    moving: Path
    mask: Path
    n_bytes: int | None = None
    form: ClassVar[str] = GENERATED
    has_junctions: ClassVar[bool] = True

    def load(self, long_side: int, junction_sigma_px: float) -> torch.Tensor:
        """The stack (6, H, W) uint8 of the sample, see :func:`load_sample`."""
        return load_sample(self, long_side, junction_sigma_px)

    def provenance(self) -> Provenance:
        """See :meth:`dataset.view_sources.ViewSource.provenance`.

        Raises:
            OSError: a file that is missing or cannot be reached.
        """
        paths = [self.fixed, self.moving, self.mask]
        place = (GENERATED, *(os.path.abspath(path) for path in paths))
        return Provenance(place, (*state_of_files(paths), str(self.n_bytes)))

    def tolerance_px(self, long_side: int) -> float:
        """Radius within which the alignment is known, pixels of the own frame: 0, it is exact."""
        return 0.0


def discover_samples(root: str | Path, modes: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """Find all samples below a folder.

    Args:
        root: folder of the data set, with sample folders ``<num>_<letter>``.
        modes: keys of ``MODE_FILES``.

    Returns:
        Samples by mode, then by number and name of the folder; and one line for every folder that
        lacks a file of a mode.

    Raises:
        InputError: no such folder, no sample folders, an unknown mode, or a mode for which no
            folder has all files.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"{root}: no such data folder; `python -m synthesis --out {root}` makes one."
        )
    for mode in modes:
        if mode not in MODE_FILES:
            raise InputError(f"mode '{mode}' is unknown; choose from {', '.join(MODE_FILES)}.")
    names = sample_folders(root)
    if not names:
        raise InputError(f"{root}: holds no sample folders named <num>_<letter> (for example 1_A).")
    found: dict[str, list[Sample]] = {mode: [] for mode in modes}
    lacking: dict[str, list[str]] = {mode: [] for mode in modes}
    for name in names:
        folder = root / name
        files = _files_of(folder)
        for mode in modes:
            sample = _sample_of(folder, files, mode)
            if isinstance(sample, Sample):
                found[mode].append(sample)
            else:
                lacking[mode].append(sample)
    for mode in modes:
        if not found[mode]:
            raise InputError(
                f"{root}: no folder has all files of mode {mode}. {lacking[mode][-1]}. "
                "Add the files or leave the mode out of --mode."
            )
    return list(chain(*found.values())), list(chain(*lacking.values()))


def ignored_folders(root: str | Path) -> list[str]:
    """A line for every folder that is no sample because of its name.

    Args:
        root: folder of the data set.
    """
    return [
        f"{path}: ignored, because it is not named <num>_<letter>."
        for path in sorted(Path(root).iterdir())
        if path.is_dir() and "_" not in path.name and not path.name.startswith(".")
    ]


def sample_folders(root: Path) -> list[str]:
    """Names of the sample folders below a folder, by number and name; those without number last.

    Args:
        root: folder of a data set.
    """
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if "_" in entry.name and entry.is_dir()]
    return sorted(names, key=_natural_order)


def _files_of(folder: Path) -> dict[str, int]:
    """Bytes of every PNG file in a folder, by name."""
    # One listing is several times as fast as asking for every name that a file may have.
    with os.scandir(folder) as entries:
        return {
            entry.name: entry.stat().st_size
            for entry in entries
            if entry.name.endswith(".png") and entry.is_file()
        }


def _sample_of(folder: Path, files: dict[str, int], mode: str) -> Sample | str:
    """The sample of a folder in a mode, or a line that names the missing files."""
    stem = folder.name
    names = [[f"{stem}_{suffix}.png" for suffix in suffixes] for suffixes in MODE_FILES[mode]]
    first = [next((name for name in each if name in files), None) for each in names]
    missing = [" or ".join(each) for each, name in zip(names, first, strict=True) if name is None]
    if missing:
        return f"{folder}: no {' and no '.join(missing)} for mode {mode}"
    fixed, moving, mask = (name for name in first if name is not None)
    return Sample(
        key=f"{mode}_{stem}",
        eye=stem.split("_")[0],
        mode=mode,
        fixed=folder / fixed,
        moving=folder / moving,
        mask=folder / mask,
        n_bytes=files[fixed] + files[moving] + files[mask],
    )


def _natural_order(name: str) -> tuple[int, str]:
    """Sort key of the name of a sample folder: by number, names without one last."""
    number = name.split("_")[0]
    return (int(number) if number.isdigit() else 10**9, name)


def load_sample(sample: Sample, long_side: int, junction_sigma_px: float) -> torch.Tensor:
    """Read a sample at its working size.

    Convention: the pixels of the result are the *own frame* of the sample, in which the value
    map stores its places.

    Args:
        sample: from :func:`discover_samples`.
        long_side: long side of the result, pixels.
        junction_sigma_px: standard deviation of a junction in the heatmap, pixels of the result.

    Returns:
        (6, H, W) uint8 in [0, 255], channels as in :class:`Channel`; mask and fields are 0 or 255.

    Raises:
        InputError: an unreadable file, a file that changed since it was found, images of different
            sizes, or a mask without vessels or inverted.
    """
    fixed, moving, mask = read_gray(sample.fixed), read_gray(sample.moving), read_mask(sample.mask)
    problems = problems_between(sample, fixed, moving, mask)
    if problems:
        raise InputError(problems[0])
    size = fit_within(size_of_image(fixed), long_side)
    fields = [estimate_field_of_view(image) for image in (fixed, moving)]
    fixed, moving, mask, fixed_field, moving_field = (
        resize_image(raster, size) for raster in (fixed, moving, mask, *fields)
    )
    mask = mask > MIN_VESSEL_COVERAGE
    rasters = {
        Channel.FIXED: fixed,
        Channel.MOVING: moving,
        Channel.MASK: mask,
        Channel.HEATMAP: gaussian_heatmap(find_junctions(mask), size, junction_sigma_px),
        Channel.FIXED_FIELD: fixed_field > 0.5,
        Channel.MOVING_FIELD: moving_field > 0.5,
    }
    return as_stack(rasters)


def as_stack(rasters: Mapping[Channel, np.ndarray]) -> torch.Tensor:
    """The rasters of a sample in one tensor, rounded to 8 bits.

    Args:
        rasters: (H, W) in [0, 1] or bool, of each channel.

    Returns:
        (6, H, W) uint8 in [0, 255].
    """
    stack = np.stack([rasters[channel] for channel in Channel]).astype(np.float32)
    return torch.from_numpy((np.clip(stack, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def problems_between(
    sample: Sample, fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray
) -> list[str]:
    """Check the images of a sample against each other.

    Args:
        sample: gives the paths for the messages, and the size of its files when they were found.
        fixed, moving: (H, W) float32 in [0, 1], as read.
        mask: (H, W) bool, True on vessels.

    Returns:
        One line for each problem, with its remedy.
    """
    problems = []
    if sample.n_bytes not in (None, bytes_of_files([sample.fixed, sample.moving, sample.mask])):
        problems.append(
            f"{sample.fixed.parent}: files changed since the run began; restore them, or begin a "
            "new run."
        )
    for path, raster in ((sample.moving, moving), (sample.mask, mask)):
        if raster.shape != fixed.shape:
            problems.append(
                f"{path}: {raster.shape[1]} x {raster.shape[0]} px, but {sample.fixed.name} has "
                f"{fixed.shape[1]} x {fixed.shape[0]}; images of a generated folder must be "
                "aligned, so resize or regenerate it."
            )
    if not mask.any():
        problems.append(
            f"{sample.mask}: no vessel is marked; masks must be white on black. Correct or remove "
            "this folder."
        )
    elif mask.mean() > MAX_VESSEL_SHARE:
        problems.append(
            f"{sample.mask}: {mask.mean():.0%} of the mask is marked; vessels must be white on "
            "black, so invert the mask."
        )
    return problems
