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
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.data import Dataset

from dataset.junctions import find_junctions, gaussian_heatmap
from dataset.photometric import PhotometricRanges, randomise
from utils.batches import ViewKey
from utils.config import build, read_yaml
from utils.errors import InputError, run_script
from utils.field_of_view import estimate_field_of_view
from utils.geometry import affine_about, fit_within, image_centre, inside, warp_image, warp_points
from utils.image_io import read_gray, read_mask, resize_image, write_text_atomically

# Per mode: suffixes of the fixed image, the moving image and the vessel mask; the first that exists counts.
MODE_FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "cffa": (("cf_512", "cf"), ("fa_gen", "fa"), ("seg",)),
    "cfoct": (("cf_512", "cf"), ("oct_gen", "oct"), ("seg",)),
    "octfa": (("oct_gen", "oct"), ("fa_gen", "fa"), ("seg",)),
    "cfocta": (("cf_clip_512", "cf_clip"), ("octa_gen", "octa"), ("seg_clip",)),
}
MAX_VESSEL_SHARE = 0.5
# Rasters of a sample as channels of one stack, so that one warp call moves them all.
FIXED_CHANNELS, MOVING_CHANNELS = [0, 2, 3, 4], [1, 2, 3, 5]


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


@dataclass(frozen=True)
class ViewGeometry:
    """How views are drawn.

    Attributes:
        img_size: side of the square views in pixels; None takes the whole image.
        long_side: the images are first brought to this long side, so that vessels have the width of inference.
        rotation_deg: the moving side is turned by up to this angle either way (180 = any).
        scale: range of the scale from fixed to moving, drawn evenly in its logarithm.
        translation: largest shift of the moving side, as a share of the view.
        shear: largest shear (tangent).
        zoom: range of the magnification of the fixed side (crops only).
        min_overlap: least overlap of the two views, as a share of the retina in the one that shows less of it.
        mirror: mirror both images together in half of the views.
        ramp_epochs: over so many epochs the ranges of rotation, scale and look grow to those given here; 0 = at once.
    """

    img_size: int | None = 256
    long_side: int = 512
    rotation_deg: float = 45.0
    scale: tuple[float, float] = (0.7, 1.45)
    translation: float = 0.2
    shear: float = 0.05
    zoom: tuple[float, float] = (0.8, 1.25)
    min_overlap: float = 0.4
    mirror: bool = True
    ramp_epochs: int = 0

    def difficulty(self, epoch: int) -> float:
        """Share of the full ranges that an epoch (from 1) draws from, in (0, 1]."""
        return min(1.0, max(epoch, 1) / self.ramp_epochs) if self.ramp_epochs else 1.0

    def eased(self, share: float) -> ViewGeometry:
        """The same with ``share`` of the range of rotation and of (the logarithm of) scale."""
        return replace(
            self,
            rotation_deg=share * self.rotation_deg,
            scale=tuple(end**share for end in self.scale),
        )


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
            f"{root}: no such data folder; `python -m dataset.synthesize --out {root}` makes one."
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


def split_by_eye(eyes: list[str], shares: tuple[float, float], seed: int) -> dict[str, list[str]]:
    """Divide eyes into train, val and test; all samples of an eye go together.

    Args:
        eyes: any order, repeats allowed.
        shares: shares of val and test; each gets at least one eye.
        seed: of the shuffle; the same eyes and seed give the same split.

    Raises:
        InputError: fewer than three eyes.
    """
    unique = sorted(set(eyes))
    if len(unique) < 3:
        raise InputError(f"only {len(unique)} eyes; train, val and test need at least one each.")
    order = np.random.default_rng(seed).permutation(len(unique))
    n_val, n_test = (max(1, round(share * len(unique))) for share in shares)
    if n_val + n_test >= len(unique):
        raise InputError(
            f"{len(unique)} eyes cannot give shares of {shares} to val and test; lower data.val_test_share."
        )
    shuffled = [unique[i] for i in order]
    return {
        "train": sorted(shuffled[n_val + n_test :]),
        "val": sorted(shuffled[:n_val]),
        "test": sorted(shuffled[n_val : n_val + n_test]),
    }


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


def overlap_share(
    stack: torch.Tensor, H_fix_to_own: np.ndarray, H_fix_to_mov: np.ndarray, size: tuple[int, int]
) -> float:
    """Overlap of two views of a size, as a share of the retina in the view that shows less of it; on a coarse grid."""
    H_mov_to_fix = np.linalg.inv(H_fix_to_mov)
    return max(
        _share_seen(stack, (4, 5), H_fix_to_own, H_fix_to_mov, size),
        _share_seen(stack, (5, 4), H_fix_to_own @ H_mov_to_fix, H_mov_to_fix, size),
    )


def _share_seen(
    stack: torch.Tensor,
    fields: tuple[int, int],
    H_view_to_own: np.ndarray,
    H_view_to_other: np.ndarray,
    size: tuple[int, int],
) -> float:
    """Share of one view's retina that the other shows; ``fields`` are their channels of the stack."""
    ys, xs = np.meshgrid(
        np.linspace(0, size[0] - 1, 17), np.linspace(0, size[1] - 1, 17), indexing="ij"
    )
    points = np.stack([xs.ravel(), ys.ravel()], axis=1)
    own = np.round(warp_points(points, H_view_to_own)).astype(int)
    in_frame = inside(own, tuple(stack.shape[-2:]))
    x, y = np.where(in_frame[:, None], own, 0).T
    here, there = (in_frame & (stack[channel].numpy()[y, x] > 127) for channel in fields)
    return float(
        (here & there & inside(warp_points(points, H_view_to_other), size)).sum()
        / max(here.sum(), 1)
    )


def draw_geometry(
    stack: torch.Tensor, geometry: ViewGeometry, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draw one view of a sample.

    Args:
        stack: (6, H, W) of :func:`load_sample`.

    Returns:
        ``H_fix_to_own``, ``H_fix_to_mov`` (3, 3), and the size (height, width) of both views.
    """
    own_size = tuple(stack.shape[-2:])
    size = own_size if geometry.img_size is None else (geometry.img_size, geometry.img_size)
    mirror = geometry.mirror and rng.random() < 0.5
    H_fix_to_own = np.eye(3)
    for attempt in range(12):
        if geometry.img_size is not None:
            zoom = np.exp(rng.uniform(*np.log(geometry.zoom)))
            H_fix_to_own = affine_about(
                0.0,
                1.0 / zoom,
                0.0,
                image_centre(size),
                _crop_centre(stack, size, zoom, rng),
                mirror,
            )
        elif mirror:
            H_fix_to_own = affine_about(0.0, 1.0, 0.0, image_centre(size), image_centre(size), True)
        # Each failed attempt asks for less shift, so that the last one overlaps for certain where there is retina.
        reach = geometry.translation * (1.0 - attempt / 12.0)
        shift = rng.uniform(-reach, reach, 2) * np.array(size[::-1])
        H_fix_to_mov = affine_about(
            rng.uniform(-geometry.rotation_deg, geometry.rotation_deg),
            float(np.exp(rng.uniform(*np.log(geometry.scale)))),
            rng.uniform(-geometry.shear, geometry.shear),
            image_centre(size),
            image_centre(size) + shift,
        )
        if overlap_share(stack, H_fix_to_own, H_fix_to_mov, size) >= geometry.min_overlap:
            break
    return H_fix_to_own, H_fix_to_mov, size


def _crop_centre(
    stack: torch.Tensor, size: tuple[int, int], zoom: float, rng: np.random.Generator
) -> np.ndarray:
    """Centre of a crop in the own frame: on a vessel that both images show, moved so that the crop stays inside."""
    own_height, own_width = stack.shape[-2:]
    vessels = torch.nonzero((stack[2] > 127) & (stack[4] > 127) & (stack[5] > 127))
    half = np.minimum(0.5 * np.array(size[::-1]) / zoom, 0.5 * np.array([own_width, own_height]))
    centre = image_centre((own_height, own_width))
    if len(vessels):
        centre = vessels[int(rng.integers(len(vessels)))].numpy()[::-1].astype(float)
    return np.clip(centre, half - 0.5, np.array([own_width, own_height]) - half - 0.5)


def draw_anchors(
    fixed_mask: np.ndarray,
    moving_fov: np.ndarray,
    H_fix_to_mov: np.ndarray,
    n_anchors: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random vessel points that both images show.

    Args:
        fixed_mask: (H, W), vessels of the fixed view; moving_fov: (Hm, Wm), field of view of the moving view.

    Returns:
        (n_anchors, 2) float32 fixed pixels in random order, zeros behind the real ones, and (n_anchors,) bool.
    """
    rows, columns = np.nonzero(fixed_mask > 0.5)
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    mapped = np.round(warp_points(points, H_fix_to_mov)).astype(int)
    on_image = inside(mapped, moving_fov.shape)
    x, y = np.where(on_image[:, None], mapped, 0).T
    points = points[on_image & (moving_fov[y, x] > 0.5)] if len(points) else points
    chosen = points[rng.permutation(len(points))[:n_anchors]]
    anchors = np.zeros((n_anchors, 2), dtype=np.float32)
    # Off the pixel grid, so that descriptors are learnt between the centres too.
    anchors[: len(chosen)] = chosen + rng.uniform(-0.5, 0.5, chosen.shape)
    return torch.from_numpy(anchors), torch.from_numpy(np.arange(n_anchors) < len(chosen))


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


def write_manifest(
    path: str | Path, root: str | Path, seed: int, split: dict[str, list[str]]
) -> None:
    """Write which eyes train, validate and test, so that anyone can check that no eye is on two sides."""
    write_text_atomically(
        path, yaml.safe_dump({"data": str(root), "seed": seed, **split}, sort_keys=False)
    )


def read_manifest(path: str | Path) -> dict[str, list[str]]:
    """Read what :func:`write_manifest` wrote: eyes of train, val and test.

    Raises:
        InputError: missing file or missing parts.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such split manifest; a training run writes split.yaml into its folder."
        )
    content = read_yaml(path)
    if not {"train", "val", "test"} <= set(content):
        raise InputError(f"{path}: not a split manifest (train, val and test expected).")
    return {part: [str(eye) for eye in content[part]] for part in ("train", "val", "test")}


def main() -> None:
    """Write a contact sheet of what the model will see, by the settings of a training config."""
    from utils.pictures import contact_sheet

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="data/generated")
    parser.add_argument("--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES))
    parser.add_argument("--config", default="configs/superretina_lite.yaml")
    parser.add_argument("--show", required=True, metavar="PNG")
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    content = read_yaml(args.config)
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
