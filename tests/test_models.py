"""The SuperRetina networks, the ridge stem, and files of weights."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from helpers import SMALL_MODEL, save_untrained

from geometry.estimation import Plausibility
from loss.value_map import Observation, ValueMap
from model.pretrained import load_pretrained
from model.ridge_stem import RidgeStem
from model.super_retina_multimodal import ModelSettings
from registration.trained_matchers import build_model, load_matcher
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import InputError

SETTINGS = {
    "lite": SMALL_MODEL,
    "lite raw": ModelSettings(stem="raw", widths=(8, 16, 16), descriptor_dim=16),
    "published": ModelSettings(architecture="published"),
}


def official_state() -> dict[str, torch.Tensor]:
    """The flat layout of the official SuperRetina checkpoint, with random values."""
    shapes = {
        "convDa": (256, 128, 3, 3),
        "convDb": (256, 256, 4, 4),
        "convDc": (256, 256, 1, 1),
        "trans_conv": (256, 256, 2, 2),
        "conv_last": (1, 64, 1, 1),
    }
    widths = (1, 64, 64, 128, 128)
    for level in range(1, 5):
        shapes |= {
            f"conv{level}a": (widths[level], widths[level - 1], 3, 3),
            f"conv{level}b": (widths[level],) * 2 + (3, 3),
        }
    for level, (channels_in, channels_out) in {3: (256, 128), 2: (192, 64), 1: (128, 64)}.items():
        shapes |= {
            f"dconv_up{level}.0": (channels_out, channels_in, 3, 3),
            f"dconv_up{level}.2": (channels_out, channels_out, 3, 3),
        }
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.{kind}": 0.05
        * torch.randn(shape if kind == "weight" else shape[:1], generator=generator)
        for name, shape in shapes.items()
        for kind in ("weight", "bias")
    }


# --- networks ---


@pytest.mark.parametrize("name", SETTINGS)
def test_sizes_for_images_that_are_not_square(name):
    model = build_model(SETTINGS[name]).eval()
    height, width = 2 * model.size_multiple, 5 * model.size_multiple
    image = torch.rand(2, 1, height, width)
    with torch.no_grad():
        features = model.describe(image, "fixed")
    assert features.detector.shape == (2, 1, height, width)
    assert features.detector.min() >= 0 and features.detector.max() <= 1
    stride = model.descriptor_stride
    assert features.descriptors.shape[2:] == (height // stride, width // stride)
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_shapes_and_roles_are_refused(name):
    model = build_model(SETTINGS[name])
    side = model.size_multiple * 2
    for shape in (
        (1, side, side),
        (1, 3, side, side),
        (1, 1, side, side + 1),
        (1, 1, side - 1, side),
    ):
        with pytest.raises(ValueError, match="multiples of"):
            model.describe(torch.zeros(shape), "fixed")
    with pytest.raises(ValueError, match="role"):
        model.describe(torch.zeros(1, 1, side, side), "target")


@pytest.mark.parametrize("encoders", ["shared", "dual"])
@pytest.mark.parametrize("same_size", [True, False])
def test_features_of_a_pair_equal_those_of_its_images(encoders, same_size):
    torch.manual_seed(0)
    model = build_model(
        ModelSettings(encoders=encoders, widths=(8, 16, 16), descriptor_dim=16)
    ).eval()
    fixed, moving = torch.rand(2, 1, 32, 48), torch.rand(2, 1, 32, 48 if same_size else 64)
    with torch.no_grad():
        both = model(fixed, moving)
        single = model.describe(fixed, "fixed"), model.describe(moving, "moving")
        swapped = model.describe(moving, "fixed")
    for ours, wanted in zip(both, single, strict=True):
        for ours_map, wanted_map in zip(ours, wanted, strict=True):
            assert torch.allclose(ours_map, wanted_map, atol=1e-5)
    assert torch.allclose(swapped.descriptors, single[1].descriptors, atol=1e-5) == (
        encoders == "shared"
    )


@pytest.mark.parametrize("name", ["lite", "published"])
def test_features_do_not_depend_on_the_batch_or_the_mode(name):
    """No statistics over the batch, so training on several devices equals training on one."""
    torch.manual_seed(0)
    model = build_model(SETTINGS[name])
    images = torch.rand(3, 1, 32, 48)
    with torch.no_grad():
        together, alone = (
            model.train().describe(images, "fixed"),
            model.eval().describe(images[1:2], "fixed"),
        )
    assert torch.allclose(together.detector[1:2], alone.detector, atol=1e-5)
    assert torch.allclose(together.descriptors[1:2], alone.descriptors, atol=1e-4)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"architecture": "huge"}, "architecture"),
        ({"encoders": "three"}, "encoders"),
        ({"stem": "edges"}, "stem"),
        ({"widths": (8,)}, "widths"),
        ({"widths": (8, 16)}, "widths"),
        ({"widths": (12, 44, 44)}, "widths"),
    ],
)
def test_unusable_settings_are_refused(settings, word):
    """Settings of networks that cannot be built, or have no descriptor level, are errors."""
    with pytest.raises(InputError, match=word):
        build_model(ModelSettings(**settings))


def test_the_lite_default_is_small():
    assert 0.5e6 < sum(p.numel() for p in build_model(ModelSettings()).parameters()) < 1.2e6


# --- ridge stem ---


def vessel_image(sign: float, contrast: float = 0.2, level: float = 0.5) -> torch.Tensor:
    ys, xs = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    line = torch.exp(-0.5 * ((ys - 0.4 * xs - 20) / 2.2) ** 2) + torch.exp(
        -0.5 * ((xs - 70) / 1.6) ** 2
    )
    return (level + sign * contrast * line.clamp(max=1))[None, None]


def test_dark_and_bright_vessels_have_equal_ridge_strength():
    stem = RidgeStem()
    dark, bright = stem(vessel_image(-1)), stem(vessel_image(1))
    assert dark.shape == (1, stem.out_channels, 96, 128)
    assert torch.allclose(dark, bright, atol=1e-3) and dark.max() > 1.0
    beside = stem(vessel_image(1))[..., 5:20, 100:]
    assert beside.max() < 0.1 * bright.max(), "low where there is no vessel"


def test_constant_and_linear_intensity_have_no_ridges():
    ys, xs = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    for image in (torch.full((96, 128), 0.7), 0.3 * xs + 0.5 * ys):
        strength = RidgeStem()(image[None, None])
        assert strength[..., 16:-16, 16:-16].abs().max() < 1e-2


def test_ridge_strength_depends_little_on_contrast_and_brightness():
    stem = RidgeStem()
    strong, weak = stem(vessel_image(1, 0.4, 0.1)), stem(vessel_image(1, 0.1, 0.6))
    on_vessel = strong > 0.5
    ratio = weak[on_vessel] / strong[on_vessel]
    assert on_vessel.any() and ratio.min() > 0.75 and ratio.max() < 1.05


def test_stem_is_not_trained_nor_saved():
    stem = RidgeStem()
    assert not list(stem.parameters()) and not stem.state_dict()


def test_stem_keeps_full_precision_under_autocast():
    image = vessel_image(1, 0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = RidgeStem()(image)
    assert half.dtype == torch.float32 and torch.equal(half, RidgeStem()(image))


# --- the official weights ---


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("encoders", ["shared", "dual"])
def test_official_weights_load_completely(tmp_path, nested, encoders):
    state, path = official_state(), tmp_path / "SuperRetina.pth"
    torch.save({"net": state} if nested else state, path)
    model = build_model(ModelSettings(architecture="published", encoders=encoders))
    report = load_pretrained(model, path)
    assert str(len(model.state_dict())) in report
    assert torch.equal(model.encoder.conv3a.weight, state["conv3a.weight"])
    assert torch.equal(model.decoder.dconv_up2[2].bias, state["dconv_up2.2.bias"])
    assert torch.equal(model.decoder.trans_conv.weight, state["trans_conv.weight"])
    if encoders == "dual":
        assert torch.equal(model.moving_encoder.conv1a.bias, state["conv1a.bias"])
        assert model.moving_encoder.conv1a.bias is not model.encoder.conv1a.bias


def test_official_weights_with_other_keys_are_refused_with_counts(tmp_path):
    state, path = official_state(), tmp_path / "SuperRetina.pth"
    del state["conv1a.weight"], state["convDa.bias"]
    state |= {"conv9.weight": torch.zeros(3), "conv2a.bias": torch.zeros(7)}
    torch.save(state, path)
    model = build_model(SETTINGS["published"])
    before = model.encoder.conv4b.weight.clone()
    with pytest.raises(InputError) as caught:
        load_pretrained(model, path)
    for part in (str(path), "2 missing", "1 unexpected", "1 of another shape", "conv9.weight"):
        assert part in str(caught.value)
    assert torch.equal(before, model.encoder.conv4b.weight), (
        "no tensor is loaded if any key is wrong"
    )


@pytest.mark.parametrize("content", [[1, 2], {"net": 3}, {"net": {"a": "text"}}, {"epoch": 3}])
def test_files_that_hold_no_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth"):
        load_pretrained(build_model(SMALL_MODEL), tmp_path / "other.pth")


# --- checkpoints ---


def test_a_matcher_is_rebuilt_from_its_checkpoint_alone(tmp_path):
    path = save_untrained(
        tmp_path / "model.pth",
        ModelSettings(encoders="dual", widths=(8, 24, 16), descriptor_dim=12),
        128,
    )
    matcher, plausibility = load_matcher(path)
    saved = read_checkpoint(path)["model"]
    assert (
        matcher.model.moving_encoder is not None
        and matcher.settings.long_side == 128
        and plausibility == Plausibility()
    )
    assert all(
        torch.equal(value, saved[name]) for name, value in matcher.model.state_dict().items()
    )
    assert not matcher.model.training
    assert load_matcher(path, long_side=96)[0].settings.long_side == 96


def test_pretrained_of_another_architecture_is_refused(tmp_path):
    path = save_untrained(tmp_path / "small.pth")
    for settings in (
        ModelSettings(),
        SETTINGS["published"],
        ModelSettings(encoders="dual", widths=(8, 16, 16)),
    ):
        with pytest.raises(InputError, match="small.pth.*architecture"):
            load_pretrained(build_model(settings), path)
    assert "loaded all" in load_pretrained(build_model(SMALL_MODEL), path)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    content = read_checkpoint(save_untrained(tmp_path / "model.pth"))
    save_checkpoint(tmp_path / "other.pth", content | {"kind": "loftr"})
    with pytest.raises(InputError, match="other.pth.*loftr"):
        load_matcher(tmp_path / "other.pth")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match="foreign.pth.*not a checkpoint of this project"):
        load_matcher(tmp_path / "foreign.pth")
    for part in ("model", "model_settings", "match_settings"):
        save_checkpoint(
            tmp_path / "part.pth",
            {key: value for key, value in content.items() if key not in (part, "format")},
        )
        with pytest.raises(InputError, match="part.pth"):
            load_matcher(tmp_path / "part.pth")


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"epoch": 1})

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError):
        save_checkpoint(path, {"epoch": 2})
    assert read_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"], "no temporary file is left"


def test_a_value_map_and_nested_state_are_restored(tmp_path):
    value_map = ValueMap()
    for _ in range(2):
        value_map.apply([Observation("cffa_1_A", torch.tensor([[3.5, 4.25]]), torch.zeros(0, 2))])
    save_checkpoint(
        tmp_path / "a.pth",
        {"extra": {"value_map": value_map.state_dict()}, "history": [{"loss": 1.5}]},
    )
    content, restored = read_checkpoint(tmp_path / "a.pth"), ValueMap()
    restored.load_state_dict(content["extra"]["value_map"])
    assert torch.equal(restored.admitted("cffa_1_A"), value_map.admitted("cffa_1_A")) and len(
        restored.admitted("cffa_1_A")
    )
    assert content["history"] == [{"loss": 1.5}]


class Executed:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_executed(tmp_path, writer):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    if writer == "torch":
        torch.save({"format": Executed(str(marker))}, path)
    else:
        path.write_bytes(pickle.dumps(Executed(str(marker))))
    for read in (
        read_checkpoint,
        load_matcher,
        lambda p: load_pretrained(build_model(SMALL_MODEL), p),
    ):
        with pytest.raises(InputError, match="evil.pth"):
            read(path)
    assert not marker.exists()


def test_damaged_files_are_refused(tmp_path, untrained_weights):
    whole, path = untrained_weights.read_bytes(), tmp_path / "cut.pth"
    garbage = bytes(range(256)) * 20
    for data in (
        b"",
        b"x",
        whole[:10],
        whole[: len(whole) // 2],
        whole[:-1],
        garbage,
        b"{}",
        b"id,fixed\n",
        "中文".encode(),
        b"\x80\x02.",
        b"\x80\x04K\x01.",
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cut.pth"):
            read_checkpoint(path)
    with pytest.raises(InputError, match="nowhere.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(InputError):
        read_checkpoint(tmp_path)
