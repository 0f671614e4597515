"""Training samples from real images: pairs that a transform aligns, and single images.

A real pair becomes an aligned sample like a generated one: its moving image is resampled through
its transform, of whatever kind, into the frame of its fixed image.

    python -m dataset.teaching_samples --real ROOT --show views.png
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dataset.aligned_pairs import SHEET_COLUMNS, AlignedPairs
from dataset.junctions import find_junctions, gaussian_heatmap
from dataset.photometric import PhotometricRanges
from dataset.real_items import RealItem, find_real_items
from dataset.real_pair_files import ALL_PARTS, FIXED_ROLES, PART_HELP
from dataset.real_pairs import check_inside, check_residual
from dataset.ridge_labels import find_ridges
from dataset.samples import Channel, as_stack
from dataset.view_sources import (
    LANDMARKS,
    REGISTERED,
    SELF,
    Provenance,
    bytes_of_files,
    state_of_files,
)
from dataset.views import ViewGeometry, ViewKey
from geometry.field_of_view import estimate_field_of_view
from geometry.landmark_fits import FITS, LandmarkFit, fit_landmarks
from geometry.matrices import fit_within, resize_matrix, size_of_image
from geometry.rasters import register_onto_fixed
from geometry.transforms import MatrixTransform, Transform
from utils.errors import InputError, run_script
from utils.image_decoding import image_size
from utils.image_files import read_gray, resize_image

IDENTITY = MatrixTransform(np.eye(3), "affine")
SELF_RANGES = PhotometricRanges(p_apply=0.9, p_invert=0.4)  # chosen by hand, see RealSettings


@dataclass(frozen=True)
class TeachingSample:
    """A real pair, or one image twice; a :class:`dataset.view_sources.ViewSource`.

    Attributes:
        key: unique within a run and safe as a file name.
        eye: samples of one eye share it.
        mode: name of the root that it comes from.
        form: "landmarks", "registered" or "self".
        fixed, moving: images; the same file for "self".
        transform: from fixed to moving pixels of the files; None where it is not known yet.
        tolerance_file_px: radius within which it is known, pixels of the fixed file; 0 = exact.
        weak_junctions: whether junctions of the ridges are labels of the detector.
        n_bytes: size of both files together when they were found; None skips the check.
    """

    key: str
    eye: str
    mode: str
    form: str
    fixed: Path
    moving: Path
    transform: Transform | None = None
    tolerance_file_px: float = 0.0
    weak_junctions: bool = False
    n_bytes: int | None = None

    @property
    def has_junctions(self) -> bool:
        """See :class:`dataset.view_sources.ViewSource`."""
        return self.weak_junctions

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Fixed and moving image, (H, W) float32 in [0, 1], at their own sizes.

        Raises:
            InputError: an unreadable file, or one that changed since the run began.
        """
        if self.n_bytes not in (None, bytes_of_files([self.fixed, self.moving])):
            raise InputError(
                f"{self.fixed}, {self.moving.name}: changed since the run began; restore them, or "
                "begin a new run."
            )
        fixed = read_gray(self.fixed)
        return fixed, fixed if self.moving == self.fixed else read_gray(self.moving)

    def load(self, long_side: int, junction_sigma_px: float) -> torch.Tensor:
        """See :meth:`dataset.view_sources.ViewSource.load`; the mask holds the ridges of both.

        Args:
            long_side: long side of the fixed image in the result, pixels.
            junction_sigma_px: standard deviation of a junction in the heatmap, pixels.

        Raises:
            InputError: unreadable files, or a pair that is not registered yet.
        """
        if self.transform is None:
            raise InputError(f"{self.key}: this pair is not registered yet, so it cannot teach.")
        fixed, moving = self.images()
        file_size = size_of_image(fixed)
        size = fit_within(file_size, long_side)
        own_to_moving = self.transform.rescaled(resize_matrix(size, file_size), np.eye(3))
        fixed_field = resize_image(estimate_field_of_view(fixed), size) > 0.5
        fixed = resize_image(fixed, size)
        # One call for all rasters of the moving image.
        rasters = np.stack([moving, estimate_field_of_view(moving).astype(np.float32)], axis=-1)
        moving, moving_field = np.moveaxis(register_onto_fixed(rasters, own_to_moving, size), -1, 0)
        overlap = fixed_field & (moving_field > 0.5)
        ridges = find_ridges(fixed, moving, overlap)
        points = find_junctions(ridges) if self.weak_junctions else np.zeros((0, 2))
        return as_stack(
            {
                Channel.FIXED: fixed,
                Channel.MOVING: moving,
                Channel.MASK: ridges,
                Channel.HEATMAP: gaussian_heatmap(points, size, junction_sigma_px),
                Channel.FIXED_FIELD: fixed_field,
                Channel.MOVING_FIELD: moving_field > 0.5,
            }
        )

    def tolerance_px(self, long_side: int) -> float:
        """See :meth:`dataset.view_sources.ViewSource.tolerance_px`.

        Args:
            long_side: long side of the own frame, pixels.
        """
        if self.tolerance_file_px == 0:
            return 0.0
        return self.tolerance_file_px * long_side / max(image_size(self.fixed))

    def provenance(self) -> Provenance:
        """See :meth:`dataset.view_sources.ViewSource.provenance`.

        Raises:
            OSError: a file that is missing or cannot be reached.
        """
        paths = [self.fixed, self.moving]
        place = (self.form, *(os.path.abspath(path) for path in paths), str(self.weak_junctions))
        transform = None if self.transform is None else self.transform.to_dict()
        numbers = json.dumps([transform, self.tolerance_file_px, self.n_bytes])
        return Provenance(place, (*state_of_files(paths), numbers))


def landmark_sample(
    item: RealItem, weak_junctions: bool = False, min_tolerance_px: float = FITS.min_tolerance_px
) -> tuple[TeachingSample, LandmarkFit]:
    """The sample of a pair with landmarks, and the transform through them.

    Args:
        item: with landmarks.
        weak_junctions: see :class:`TeachingSample`.
        min_tolerance_px: least tolerance of the transform, fixed px at 512.

    Raises:
        InputError: unreadable images, or landmarks that cannot be used; the message names the file.
    """
    assert item.landmarks is not None and item.moving is not None, "a pair with landmarks"
    sizes = size_of_image(read_gray(item.fixed)), size_of_image(read_gray(item.moving))
    points, source = item.landmarks.landmarks(*sizes), item.landmarks.landmark_files[0]
    check_inside(item.landmarks, points, sizes)
    try:
        fit = fit_landmarks(*points, *sizes, min_tolerance_px)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    check_residual(source, fit.residual_px)
    sample = replace(
        _sample(item, LANDMARKS, item.fixed, item.moving, weak_junctions),
        transform=fit.transform,
        tolerance_file_px=fit.tolerance_file_px,
    )
    return sample, fit


def registered_sample(item: RealItem, weak_junctions: bool = False) -> TeachingSample:
    """The sample of a pair whose transform the network is to find; it has none yet.

    Args:
        item: a pair.
        weak_junctions: see :class:`TeachingSample`.
    """
    assert item.moving is not None, "a pair"
    return _sample(item, REGISTERED, item.fixed, item.moving, weak_junctions)


def self_samples(item: RealItem, weak_junctions: bool = False) -> list[TeachingSample]:
    """One sample for each image of an item, which is paired with itself.

    Args:
        item: a pair or a single image.
        weak_junctions: see :class:`TeachingSample`.
    """
    images = {"fixed": item.fixed} | ({} if item.moving is None else {"moving": item.moving})
    samples = []
    for role, path in images.items():
        name = f"{SELF}_{role}" if item.is_pair else SELF
        sample = _sample(item, SELF, path, path, weak_junctions)
        samples.append(replace(sample, key=f"{item.key}_{name}", transform=IDENTITY))
    return samples


def _sample(
    item: RealItem, form: str, fixed: Path, moving: Path, weak_junctions: bool
) -> TeachingSample:
    """The sample of two images of an item, without transform."""
    return TeachingSample(
        key=f"{item.key}_{form}",
        eye=item.eye,
        mode=item.root,
        form=form,
        fixed=fixed,
        moving=moving,
        weak_junctions=weak_junctions,
        n_bytes=bytes_of_files([fixed, moving]),
    )


def main() -> None:
    """Write a contact sheet of training views of real images."""
    from pictures.drawing import contact_sheet

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--real", nargs="+", required=True, metavar="ROOT", help="as in training")
    parser.add_argument("--fixed_role", default="01", choices=FIXED_ROLES)
    parser.add_argument("--part", default=ALL_PARTS, metavar="NAME", help=PART_HELP)
    parser.add_argument("--show", required=True, metavar="PNG", help="contact sheet to write")
    parser.add_argument("--rows", type=int, default=8, help="number of views")
    args = parser.parse_args()
    samples: list[TeachingSample] = []
    for item in (
        i for root in args.real for i in find_real_items(root, args.fixed_role, args.part)
    ):
        if item.landmarks is None:
            samples += self_samples(item, weak_junctions=True)
            continue
        sample, fit = landmark_sample(item, weak_junctions=True)
        samples.append(sample)
        print(f"{item.key}: residual {fit.residual_px:.1f} px at 512; {fit.reason}")
    chosen = np.linspace(0, len(samples) - 1, max(1, args.rows)).round().astype(int)
    views = AlignedPairs([samples[i] for i in chosen], ViewGeometry(), self_ranges=SELF_RANGES)
    rows = [views[ViewKey(1, index)] for index in range(len(views))]
    contact_sheet(
        args.show,
        [[view[name][0].numpy() for name in SHEET_COLUMNS] for view in rows],
        SHEET_COLUMNS,
    )


if __name__ == "__main__":
    run_script(main)
