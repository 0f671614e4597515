"""Views made in batches: the same as those that the workers make, and independent of the batch."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric

from dataset.aligned_pairs import AlignedPairs, DataSettings
from dataset.device_views import PACKED, make_views
from dataset.photometric import PhotometricRanges
from dataset.samples import discover_samples
from dataset.views import ViewGeometry, ViewKey
from training.batches import (
    TolerantViews,
    ViewBatches,
    batches_of_epoch,
    collate_views,
    finish_batch,
    make_loader,
)
from training.loop_settings import TrainSettings
from utils.errors import InputError
from utils.image_files import read_gray, write_image

# Every effect often; scales and zooms such that half of the images are reduced.
RANGES = PhotometricRanges(
    p_apply=0.8, p_invert=0.4, p_banding=0.4, p_patches=0.5, p_new_field=0.5, max_blur_px=2.0
)
GEOMETRY = ViewGeometry(
    img_size=96, long_side=192, rotation_deg=180, scale=(0.5, 2.0), zoom=(0.6, 1.5), min_overlap=0.3
)
KEYS = [ViewKey(2, index) for index in range(10)]


@pytest.fixture(scope="module")
def samples(generated_root):
    return discover_samples(generated_root, ["cffa"])[0]


def collated(pairs: AlignedPairs, keys: list[ViewKey]) -> dict:
    return finish_batch(collate_views([(pairs[key], []) for key in keys]))


@pytest.mark.parametrize("ranges", [None, RANGES], ids=["plain", "randomised"])
def test_both_ways_make_the_same_views(samples, ranges):
    made, packed = (
        collated(
            AlignedPairs(samples, GEOMETRY, ranges, seed=7, packed=each, with_aligned=False), KEYS
        )
        for each in (False, True)
    )
    assert made.keys() == packed.keys()
    assert made["key"] == packed["key"]
    for name in ("tolerance_px", "has_junctions", "H_fix_to_mov", "H_fix_to_own"):
        assert torch.equal(made[name], packed[name])
    for name in ("fixed_image", "moving_image"):
        gap = (made[name] - packed[name]).abs()
        # A pixel whose field of view is a rounding error from 0.5 may be retina or surround.
        assert gap.mean() < 2e-4 and (gap > 2e-3).float().mean() < 2e-3, name
    for role in ("fixed", "moving"):
        for name in ("mask", "fov"):
            differ = made[f"{role}_{name}"] != packed[f"{role}_{name}"]
            assert differ.float().mean() < 1e-3
        gap = (made[f"{role}_heatmap"] - packed[f"{role}_heatmap"]).abs()
        assert (gap > 2e-3).float().mean() < 1e-3
    assert made["anchors"].shape == packed["anchors"].shape and made["anchor_valid"].any(1).all()
    assert (made["anchor_valid"] != packed["anchor_valid"]).float().mean() < 0.01
    for first, second in zip(made["anchors"], packed["anchors"], strict=True):
        rounded = [
            {tuple(each) for each in points.round().int().tolist()} for points in (first, second)
        ]
        assert len(rounded[0] & rounded[1]) > 0.95 * len(rounded[0])


def test_a_view_does_not_depend_on_its_batch(samples):
    pairs = AlignedPairs(samples, GEOMETRY, RANGES, seed=7, packed=True)
    together, again = collated(pairs, KEYS), collated(pairs, KEYS)
    alone = [collated(pairs, [key]) for key in KEYS]
    for name, values in together.items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(values, again[name])
            assert torch.equal(values, torch.cat([each[name] for each in alone])), name


def test_samples_of_different_sizes_share_a_batch(samples, tmp_path, generated_root):
    for old, new in (("cf", "cf"), ("fa_gen", "fa"), ("seg", "seg")):
        image = read_gray(generated_root / "1_A" / f"1_A_{old}.png")[30:150]
        write_image(tmp_path / "1_A" / f"1_A_{new}.png", image)
    mixed = [*discover_samples(tmp_path, ["cffa"])[0], *samples[:1]]
    made, packed = (
        collated(AlignedPairs(mixed, GEOMETRY, None, packed=each), KEYS[:4])
        for each in (False, True)
    )
    assert (made["fixed_image"] - packed["fixed_image"]).abs().max() < 2e-3


@pytest.mark.slow
def test_training_batches_are_made_for_any_number_of_workers(samples):
    settings = TrainSettings(batch_size=4, views_per_sample=1)
    fabric = Fabric(accelerator="cpu", devices=1)
    views = TolerantViews(AlignedPairs(samples, GEOMETRY, RANGES, packed=True), 0.0)
    epochs = []
    for workers in (0, 2):
        loader = make_loader(views, ViewBatches(len(samples), settings, seed=1), workers, fabric)
        epochs.append(list(batches_of_epoch(loader)))
    assert len(epochs[0]) == len(samples) // 4 and PACKED not in epochs[0][0]
    for first, second in zip(*epochs, strict=True):
        assert first["key"] == second["key"]
        assert torch.equal(first["fixed_image"], second["fixed_image"])
        assert torch.equal(first["anchors"], second["anchors"])


def test_an_unknown_place_is_an_error():
    with pytest.raises(InputError, match="data.augment_on"):
        DataSettings(augment_on="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_makes_the_views_of_the_cpu_and_the_same_each_time(samples):
    pairs = AlignedPairs(samples, GEOMETRY, RANGES, seed=7, packed=True)
    fabric = Fabric(accelerator="cuda", devices=1)
    batch = collate_views([(pairs[key], []) for key in KEYS])
    cpu, gpu, again = make_views(batch), *(make_views(fabric.to_device(batch)) for _ in range(2))
    for name, values in gpu.items():
        if isinstance(values, torch.Tensor):
            assert values.device.type == "cuda" and torch.equal(values, again[name]), name
    for name in ("fixed_image", "moving_image", "fixed_mask", "moving_heatmap"):
        gap = (cpu[name] - gpu[name].cpu()).abs()
        assert gap.mean() < 2e-4 and (gap > 2e-3).float().mean() < 2e-3, name
