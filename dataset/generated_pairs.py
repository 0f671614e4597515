"""Pairs for training and validation from the user's generated layout: aligned images, known random affine.

A folder ``root/<num>_<letter>/`` holds images of one eye that are aligned pixel to pixel, and a vessel mask. One *sample*
is such a folder in one mode; one *view* is what the network sees of it: a fixed and a moving image with a known
``H_fix_to_mov`` between them. Which view comes out depends on (seed, epoch, index) alone, never on the order
of calls or on the number of workers.

    python -m dataset.generated_pairs --data data/generated --mode cffa cfoct --show views.png
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.photometric import PhotometricRanges, randomise
from dataset.samples import MODE_FILES, Sample, discover_samples, load_sample
from dataset.views import ViewGeometry, ViewKey, draw_anchors, draw_geometry
from geometry.rasters import warp_image
from utils.config import build, read_config
from utils.errors import InputError, run_script

# Rasters of a sample as channels of one stack, so that one warp call moves them all.
FIXED_CHANNELS, MOVING_CHANNELS = [0, 2, 3, 4], [1, 2, 3, 5]


@dataclass(frozen=True)
class DataSettings:
    """Split and look of the generated data.

    Attributes:
        val_test_share: shares of the eyes for validation and test.
        photometric: switch of the domain randomisation; ranges: its ranges.
        cache_mb: decoded samples kept in memory, per process.
    """

    val_test_share: tuple[float, float] = (0.12, 0.12)
    photometric: bool = True
    ranges: PhotometricRanges = field(default_factory=PhotometricRanges)
    cache_mb: int = 512

    def used_ranges(self) -> PhotometricRanges | None:
        """The ranges, or None when the randomisation is off."""
        return self.ranges if self.photometric else None


class GeneratedPairs(Dataset):
    """Views of generated samples; index with a :class:`ViewKey`.

    Args:
        samples: from :func:`discover_samples`.
        geometry: how views are drawn.
        photometric: ranges of the domain randomisation; None leaves the images as they are.
        seed: of all draws.
        junction_sigma_px: width of the junction heatmap, pixels at ``long_side``.
        cache_mb: decoded samples kept in memory, per process.
        n_anchors: vessel points drawn per view, for the descriptor loss.

    An item is a dict of float32 tensors: ``fixed_image``, ``moving_image`` (1, H, W) in [0, 1]; ``fixed_mask``,
    ``moving_mask``, ``fixed_heatmap``, ``moving_heatmap``, ``fixed_fov``, ``moving_fov`` (1, H, W), each in the frame of
    its image; ``aligned_moving`` (1, H, W), the moving image as it would look in the fixed frame; ``H_fix_to_mov`` and
    ``H_fix_to_own`` (3, 3); ``anchors`` (n_anchors, 2), random vessel points in fixed pixels that both images show, and
    ``anchor_valid`` (n_anchors,) bool, which of them are real; and the strings ``key``, ``eye``, ``mode``.
    """

    def __init__(
        self,
        samples: list[Sample],
        geometry: ViewGeometry,
        photometric: PhotometricRanges | None = None,
        seed: int = 0,
        junction_sigma_px: float = 2.0,
        cache_mb: int = 512,
        n_anchors: int = 384,
    ) -> None:
        if not samples:
            raise InputError("the data set is empty; check --data, --mode and the split.")
        self.samples = samples
        self.geometry = geometry
        self.photometric = photometric
        self.seed = seed
        self.junction_sigma_px = junction_sigma_px
        self.cache_bytes = cache_mb * 2**20
        self.n_anchors = n_anchors
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.samples)

    def _own_rasters(self, sample: Sample) -> torch.Tensor:
        if sample.key in self._cache:
            self._cache.move_to_end(sample.key)
        else:
            stack = load_sample(sample, self.geometry.long_side, self.junction_sigma_px)
            self._cache[sample.key] = stack
            while (
                len(self._cache) > 1
                and sum(kept.nbytes for kept in self._cache.values()) > self.cache_bytes
            ):
                self._cache.popitem(last=False)
        return self._cache[sample.key]

    def __getitem__(self, key: ViewKey | int) -> dict:
        key = key if isinstance(key, ViewKey) else ViewKey(0, int(key))
        sample = self.samples[key.index % len(self.samples)]
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        stack = self._own_rasters(sample)
        difficulty = self.geometry.difficulty(key.epoch)
        H_fix_to_own, H_fix_to_mov, size = draw_geometry(
            stack, self.geometry.eased(difficulty), rng
        )
        H_mov_to_own = H_fix_to_own @ np.linalg.inv(H_fix_to_mov)
        fixed = _seen(stack[FIXED_CHANNELS + MOVING_CHANNELS[:1]], H_fix_to_own, size)
        moving = _seen(stack[MOVING_CHANNELS], H_mov_to_own, size)
        view = {
            "aligned_moving": fixed[4:5],
            "H_fix_to_mov": _matrix(H_fix_to_mov)[0],
            "H_fix_to_own": _matrix(H_fix_to_own)[0],
            "key": sample.key,
            "eye": sample.eye,
            "mode": sample.mode,
        }
        for role, rasters in (("fixed", fixed), ("moving", moving)):
            view |= self._one_side(role, rasters, difficulty, rng)
        view["anchors"], view["anchor_valid"] = draw_anchors(
            view["fixed_mask"][0].numpy(),
            view["moving_fov"][0].numpy(),
            H_fix_to_mov,
            self.n_anchors,
            rng,
        )
        return view

    def _one_side(
        self, role: str, rasters: torch.Tensor, difficulty: float, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """Name the rasters (4, H, W) of one image, and randomise its look."""
        image, field_of_view = rasters[0].numpy(), rasters[3].numpy() > 0.5
        if self.photometric is not None:
            ranges = replace(self.photometric, p_apply=difficulty * self.photometric.p_apply)
            image, field_of_view = randomise(image, field_of_view, ranges, rng)
        seen = torch.from_numpy(field_of_view.astype(np.float32))[None]
        return {
            f"{role}_image": torch.from_numpy(image)[None],
            f"{role}_fov": seen,
            f"{role}_mask": (rasters[1:2] > 0.5).float() * seen,
            f"{role}_heatmap": rasters[2:3] * seen,
        }


def _seen(rasters: torch.Tensor, H_view_to_own: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A view of uint8 rasters (C, H, W) of one sample: (C, *size) in [0, 1], scaled last because a view has fewer pixels."""
    return (
        warp_image(rasters[None].float(), _matrix(H_view_to_own), size, antialias=True)[0] / 255.0
    )


def _matrix(H: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(H).float()[None]


def main() -> None:
    """Write a contact sheet of what the model will see, by the settings of a training config."""
    from pictures.drawing import contact_sheet

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="data/generated")
    parser.add_argument("--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES))
    parser.add_argument("--config", default="configs/superretina_lite.yaml")
    parser.add_argument("--show", required=True, metavar="PNG")
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    content = read_config(args.config)
    settings = build(DataSettings, content.get("data", {}), f"{args.config}: data")
    samples, _ = discover_samples(args.data, args.mode)
    pairs = GeneratedPairs(
        samples,
        build(ViewGeometry, content.get("view", {}), f"{args.config}: view"),
        settings.used_ranges(),
    )
    names = (
        "fixed_image",
        "fixed_heatmap",
        "moving_image",
        "moving_heatmap",
        "moving_mask",
        "moving_fov",
        "aligned_moving",
    )
    chosen = np.linspace(0, len(samples) - 1, max(1, args.rows)).round().astype(int)
    contact_sheet(
        args.show,
        [[pairs[ViewKey(1, int(i))][name][0].numpy() for name in names] for i in chosen],
        names,
    )


if __name__ == "__main__":
    run_script(main)
