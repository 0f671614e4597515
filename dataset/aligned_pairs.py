"""Pairs for training and validation: aligned images under a known random affine.

One *sample* is a pair of images that are aligned pixel to pixel: a generated folder in one mode
(:mod:`dataset.samples`), or real images that a transform has aligned
(:mod:`dataset.teaching_samples`). One *view* is an augmentation of a sample: a fixed and a moving
image with a known ``H_fix_to_mov`` between them. A view is a function of (seed, epoch, index)
alone; neither the order of calls nor the number of workers changes it.

    python -m dataset.aligned_pairs --data data/generated --mode cffa cfoct --show views.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.device_views import PACKED, blur_taps, pack_view
from dataset.photometric import PhotometricRanges
from dataset.samples import MODE_FILES, discover_samples
from dataset.split import check_fold
from dataset.stack_cache import StackCache
from dataset.view_rendering import draw_view, render_view
from dataset.view_sources import SELF, ViewSource
from dataset.views import ViewGeometry, ViewKey
from utils.config import build, read_config
from utils.errors import InputError, run_script

SHEET_COLUMNS = (
    "fixed_image",
    "fixed_heatmap",
    "moving_image",
    "moving_heatmap",
    "moving_mask",
    "moving_fov",
    "aligned_moving",
)

# Settings of the data that do not change any view: a resumed run may change them.
FREE_SETTINGS = ("cache_gb", "cache_mb")
AUGMENT_ON = ("workers", "device")


@dataclass(frozen=True)
class DataSettings:
    """Split of the generated data, and how images are randomised.

    Attributes:
        val_test_share: shares of the eyes for validation and test; without effect with a fold.
        split_seed: of the split, or of the folds; the seed of the run does not change the split.
        fold: k and K of a cross-validation, see :func:`dataset.split.fold_by_eye`; None divides by
            ``val_test_share``.
        photometric: whether brightness, contrast, noise and field of view are randomised.
        ranges: ranges of that randomisation.
        augment_on: "workers": the data workers make the views; "device": they read and draw only,
            and the views are made in batches on the device of the training, for a GPU.
        cache_gb: bound of the decoded samples on disk, GB, see
            :class:`dataset.stack_cache.StackCache`; 0 = none.
        cache_mb: samples that are not on disk are kept in memory, so many MB in each process.

    Raises:
        InputError: a negative seed or size, an impossible fold, or another place to augment on.
    """

    val_test_share: tuple[float, float] = (0.12, 0.12)
    split_seed: int = 0
    fold: tuple[int, int] | None = None
    photometric: bool = True
    ranges: PhotometricRanges = field(default_factory=PhotometricRanges)
    augment_on: str = "workers"
    cache_gb: float = 32.0
    cache_mb: int = 512

    def __post_init__(self) -> None:
        if self.augment_on not in AUGMENT_ON:
            raise InputError(
                f"data.augment_on: '{self.augment_on}' is unknown; choose from "
                f"{', '.join(AUGMENT_ON)}."
            )
        if not 0 <= self.cache_gb < float("inf") or self.cache_mb < 0:
            raise InputError("data.cache_gb and data.cache_mb must be at least 0.")
        if self.split_seed < 0:
            raise InputError("--split_seed (data.split_seed) must be at least 0.")
        if self.fold is not None:
            check_fold(self.fold)

    def make_cache(self) -> StackCache:
        """The cache of decoded samples."""
        return StackCache(self.cache_gb, self.cache_mb)

    def used_ranges(self) -> PhotometricRanges | None:
        """The ranges, or None when the randomisation is off."""
        return self.ranges if self.photometric else None


class AlignedPairs(Dataset):
    """Views of aligned samples; index with a :class:`ViewKey`.

    An item is a dict of float32 tensors, H and W the size of the view:

    - ``fixed_image``, ``moving_image``: (1, H, W) in [0, 1];
    - ``fixed_mask``, ``moving_mask`` (vessels), ``fixed_heatmap``, ``moving_heatmap`` (junctions),
      ``fixed_fov``, ``moving_fov`` (field of view): (1, H, W) in [0, 1], each in the frame of its
      image;
    - ``aligned_moving``: (1, H, W) in [0, 1], the moving image resampled into the fixed frame;
    - ``H_fix_to_mov``, ``H_fix_to_own``: (3, 3), from fixed pixels to moving pixels and to pixels
      of the sample at its working size;
    - ``anchors``: (n_anchors, 2), random vessel points that both images show, fixed pixels;
      ``anchor_valid``: (n_anchors,) bool, False for padding;
    - ``tolerance_px``: (), radius within which the alignment of the sample is known, fixed pixels
      of the view; 0 = exact;
    - ``has_junctions``: (), 1 where the heatmaps are labels of the detector; else 0, and they are
      all 0;

    and of the strings ``key``, ``eye``, ``mode``, ``form`` of its
    :class:`dataset.view_sources.ViewSource`.
    """

    def __init__(
        self,
        samples: Sequence[ViewSource],
        geometry: ViewGeometry,
        photometric: PhotometricRanges | None = None,
        seed: int = 0,
        junction_sigma_px: float = 2.0,
        cache: StackCache | None = None,
        n_anchors: int = 384,
        self_ranges: PhotometricRanges | None = None,
        packed: bool = False,
        with_aligned: bool = True,
    ) -> None:
        """Keep the settings; files are read when an item is.

        Args:
            samples: from :func:`dataset.samples.discover_samples`, or real ones
                (:mod:`dataset.teaching_samples`), in any mixture.
            geometry: how views are drawn.
            photometric: ranges of the domain randomisation; None leaves the images as they are.
            seed: of all draws.
            junction_sigma_px: standard deviation of a junction in the heatmaps, pixels at
                ``long_side``.
            cache: of the decoded samples; None keeps 512 MB of them in memory.
            n_anchors: vessel points drawn for each view, for the descriptor loss.
            self_ranges: ranges for the samples of the form "self", from the first epoch on: their
                two images are the same, and without a change of appearance they teach nothing.
                None: as ``photometric``.
            packed: an item has no rasters and no anchors but the entry ``packed``, of which
                :func:`dataset.device_views.make_views` makes them in batches, but for
                ``aligned_moving``; crops only.
            with_aligned: whether items have ``aligned_moving``, which no training needs.

        Raises:
            InputError: no samples.
        """
        if not samples:
            raise InputError("the data set is empty; check --data, --mode and the split.")
        self.samples = list(samples)
        self.geometry = geometry
        self.photometric = photometric
        self.seed = seed
        self.junction_sigma_px = junction_sigma_px
        self.cache = cache or StackCache()
        self.n_anchors = n_anchors
        self.self_ranges = self_ranges
        assert not (packed and geometry.img_size is None), "views of one size"
        self.packed, self.with_aligned = packed, with_aligned

    def __len__(self) -> int:
        """Number of samples; views of an epoch may show each several times."""
        return len(self.samples)

    def _ranges_of(self, sample: ViewSource, difficulty: float) -> PhotometricRanges | None:
        """Ranges of the appearance of a sample at a difficulty in (0, 1]; None: unchanged."""
        if sample.form == SELF and self.self_ranges is not None:
            return self.self_ranges
        if self.photometric is None:
            return None
        return replace(self.photometric, p_apply=difficulty * self.photometric.p_apply)

    def __getitem__(self, key: ViewKey | int) -> dict[str, Any]:
        """The view of a key; see the class. A number stands for ``ViewKey(0, number)``."""
        key = key if isinstance(key, ViewKey) else ViewKey(0, int(key))
        sample = self.samples[key.index % len(self.samples)]
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        loaded = self.cache.load(sample, self.geometry.long_side, self.junction_sigma_px)
        difficulty = self.geometry.difficulty(key.epoch)
        ranges = self._ranges_of(sample, difficulty)
        geometry = self.geometry.eased(difficulty)
        plan = draw_view(loaded.stack, geometry, ranges, self.n_anchors, rng)
        view: dict[str, Any] = {
            "H_fix_to_mov": torch.from_numpy(plan.H_fix_to_mov).float(),
            "H_fix_to_own": torch.from_numpy(plan.H_fix_to_own).float(),
            "tolerance_px": torch.tensor(
                loaded.tolerance_px / plan.own_per_fixed, dtype=torch.float32
            ),
            "has_junctions": torch.tensor(float(sample.has_junctions)),
        }
        view |= {name: getattr(sample, name) for name in ("key", "eye", "mode", "form")}
        if not self.packed:
            return view | render_view(loaded.stack, plan, self.with_aligned)
        taps = self._longest_blur()
        return view | {PACKED: pack_view(loaded.stack, plan, self.geometry.long_side, taps)}

    def _longest_blur(self) -> int | None:
        """Taps of the longest blur of any view; None where no view changes its appearance."""
        used = [ranges for ranges in (self.photometric, self.self_ranges) if ranges is not None]
        return max((blur_taps(ranges.max_blur_px) for ranges in used), default=None)


def main() -> None:
    """Write a contact sheet of views, drawn with the settings of a training config."""
    from pictures.drawing import contact_sheet

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="data/generated", help="folder of the data set")
    parser.add_argument("--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES))
    parser.add_argument("--config", default="configs/superretina_lite.yaml")
    parser.add_argument("--show", required=True, metavar="PNG", help="contact sheet to write")
    parser.add_argument("--rows", type=int, default=8, help="number of views")
    args = parser.parse_args()
    content = read_config(args.config)
    settings = build(DataSettings, content.get("data", {}), f"{args.config}: data")
    samples, _ = discover_samples(args.data, args.mode)
    pairs = AlignedPairs(
        samples,
        build(ViewGeometry, content.get("view", {}), f"{args.config}: view"),
        settings.used_ranges(),
    )
    chosen = np.linspace(0, len(samples) - 1, max(1, args.rows)).round().astype(int)
    views = (pairs[ViewKey(1, int(index))] for index in chosen)
    contact_sheet(
        args.show,
        [[view[name][0].numpy() for name in SHEET_COLUMNS] for view in views],
        SHEET_COLUMNS,
    )


if __name__ == "__main__":
    run_script(main)
