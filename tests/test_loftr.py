"""The LoFTR network: its weights files, what stays frozen, where its matches lie, and that it can learn."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import SMALL_LOFTR
from kornia.feature import LoFTR

from geometry.cells import CellMatches, cell_centres, find_cell_matches
from geometry.matrices import affine_about, image_centre
from geometry.points import warp_points
from geometry.rasters import warp_image
from loss.vessel_matching import VesselLossSettings, VesselObjective, VesselWeights
from model.loftr_modules import COARSE_STRIDE, HALF_WINDOW_PX, MODULES, kornia_config
from model.loftr_vessel import LoFTRSettings, LoFTRVessel
from model.pretrained import load_pretrained
from registration.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings
from registration.trained_matchers import build_model, describe_model, load_matcher
from registration.working_frame import WorkingFrame, WorkingImage
from utils.checkpoint import save_checkpoint
from utils.errors import InputError

FROZEN = ("backbone", "pos_encoding", "fine_preprocess")


@pytest.fixture(scope="module")
def published():
    """The published size, untrained. Read only."""
    torch.manual_seed(0)
    return build_model(LoFTRSettings())


@pytest.fixture()
def small():
    torch.manual_seed(0)
    return build_model(SMALL_LOFTR)


def first_cells(n=4):
    cells = torch.arange(n)
    return CellMatches(torch.zeros(n, dtype=torch.long), cells, cells, torch.zeros(n, 2))


def textures(n=2, side=64, seed=0):
    """Smooth random images: (n, 1, side, side) in [0, 1]."""
    noise = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(
        noise, size=(side, side), mode="bicubic", align_corners=False
    ).clamp(0, 1)


# --- published size and weights files --------------------------------------------------------------------------------


def test_published_size_has_the_published_parameters(published):
    published = copy.deepcopy(published)
    assert sum(p.numel() for p in published.parameters()) == 11_561_456
    published.freeze(FROZEN)
    assert sum(p.numel() for p in published.parameters() if p.requires_grad) == 5_579_776


@pytest.mark.parametrize("prefix", ["matcher.", ""])
def test_checkpoint_of_minima_layout_is_loaded_whole(published, tmp_path, prefix):
    """The layout and shapes of the real file, which cannot be had here: `state_dict`, keys `matcher.backbone...`."""
    torch.manual_seed(1)
    network = LoFTR(None, kornia_config(128, (128, 196, 256), 8, 4, 1, 0.1))
    torch.save(
        {
            "state_dict": {
                f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()
            }
        },
        tmp_path / "minima_loftr.ckpt",
    )
    model = copy.deepcopy(published)
    line = load_pretrained(model, tmp_path / "minima_loftr.ckpt")
    assert f"all {len(network.state_dict())} tensors" in line
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.state_dict()[f"matcher.{name}"], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("matcher.backbone.conv1.weight"),
            r"1 missing \(matcher.backbone.conv1.weight\)",
        ),
        (
            lambda state: state.update({"matcher.surplus": torch.zeros(1)}),
            r"1 unexpected \(matcher.surplus\)",
        ),
        (
            lambda state: state.update({"matcher.backbone.bn1.bias": torch.zeros(3)}),
            r"1 of another shape \(matcher.backbone.bn1.bias\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(small, tmp_path, change, message):
    state = small.state_dict()
    change(state)
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    with pytest.raises(InputError, match=message):
        load_pretrained(small, tmp_path / "weights.ckpt")


def test_files_that_hold_something_else_are_refused(small, tmp_path):
    for name, content, message in (
        ("list.ckpt", [1, 2], "neither"),
        ("text.ckpt", {"state_dict": {"a": "b"}}, "neither"),
        ("object.ckpt", {"state_dict": small}, "holds more than tensors"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message):
            load_pretrained(small, tmp_path / name)


def test_matches_equal_those_of_kornia_with_the_same_weights(published):
    """Ours adds a training path; what it answers with published weights must stay kornia's."""
    model = copy.deepcopy(published).eval()
    network = LoFTR(None, kornia_config(128, (128, 196, 256), 8, 4, 1, 0.1)).eval()
    network.load_state_dict(model.matcher.state_dict())
    fixed, moving = textures(seed=1).chunk(2)
    everywhere = torch.ones(1, 64, dtype=torch.bool)
    with torch.inference_mode():
        theirs = network({"image0": fixed, "image1": moving})
    found = model.match(
        model.describe(fixed), model.describe(moving), everywhere, everywhere, min_confidence=0.0
    )
    assert len(found.confidence) > 0
    centres = cell_centres((64, 64), COARSE_STRIDE, 0.0)
    assert torch.equal(centres[found.fixed_cell], theirs["keypoints0"])
    assert torch.allclose(
        centres[found.moving_cell] + found.offset_px, theirs["keypoints1"], atol=1e-4
    )
    assert torch.allclose(found.confidence, theirs["confidence"], atol=1e-6)


# --- freezing --------------------------------------------------------------------------------------------------------


def test_frozen_modules_stay_in_evaluation_mode(small):
    small.freeze(FROZEN)
    for _ in range(2):
        small.eval()
        small.train()
        assert small.training and small.matcher.loftr_coarse.training
        assert not any(
            module.training for name in FROZEN for module in getattr(small.matcher, name).modules()
        )


def test_a_script_that_switches_the_modules_itself_moves_no_statistics():
    small = build_model(SMALL_LOFTR)
    small.freeze(FROZEN)
    small.train()
    small.matcher.train()
    before = {name: value.clone() for name, value in small.matcher.backbone.state_dict().items()}
    cells = torch.zeros(2, dtype=torch.long)
    small(
        torch.rand(1, 1, 64, 64),
        torch.rand(1, 1, 64, 64),
        CellMatches(cells, cells, cells, torch.zeros(2, 2)),
    )
    assert all(
        torch.equal(before[name], value)
        for name, value in small.matcher.backbone.state_dict().items()
    )


def test_frozen_modules_run_without_a_graph():
    small = build_model(replace(SMALL_LOFTR, position_cells=0))
    small.freeze(FROZEN)
    small.train()
    seen = {}

    def remember(name):
        return lambda module, inputs, output: seen.update(
            {name: output[0] if isinstance(output, (tuple, list)) else output}
        )

    for name in MODULES:
        getattr(small.matcher, name).register_forward_hook(remember(name))
    features = small(textures(2), textures(2), first_cells())
    assert set(seen) == set(MODULES)
    assert {name for name, output in seen.items() if output.requires_grad} == {
        "loftr_coarse",
        "loftr_fine",
    }
    (features.similarity.sum() + features.offset_px.sum()).backward()
    for name in MODULES:
        for parameter in getattr(small.matcher, name).parameters():
            assert (parameter.grad is None) == (name in FROZEN), name


def test_nothing_is_frozen_on_request(small):
    small.freeze(FROZEN)
    small.freeze(())
    assert all(parameter.requires_grad for parameter in small.parameters())
    before = small.matcher.backbone.bn1.running_mean.clone()
    small.train()(textures(2), textures(2), first_cells())
    assert not torch.equal(before, small.matcher.backbone.bn1.running_mean)


def test_unknown_module_cannot_be_frozen(small):
    with pytest.raises(InputError, match="backbones.*choose from backbone"):
        small.freeze(["backbones"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"stem": "wavelet"},
        {"block_dims": (8, 8)},
        {"heads": 3},
        {"temperature": 0.0},
        {"coarse_layers": 0},
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(InputError):
        LoFTRSettings(**({"initial_dim": 8, "block_dims": (8, 8, 16), "heads": 2} | wrong))


def test_positions_of_a_view_come_from_anywhere_in_the_image():
    torch.manual_seed(0)
    model = LoFTRVessel(
        LoFTRSettings(
            stem="ridge",
            initial_dim=8,
            block_dims=(8, 8, 16),
            heads=2,
            coarse_layers=1,
            position_cells=40,
        )
    )
    coarse = torch.zeros(50, 16, 8, 8)
    crops = model._crop_of_positions(coarse)
    table = model.matcher.pos_encoding.pe[0]
    places = [
        next(
            (top, left)
            for top in range(33)
            for left in range(33)
            if torch.equal(crop, table[:, top : top + 8, left : left + 8])
        )
        for crop in crops
    ]
    assert len(set(places)) > 40 and max(max(place) for place in places) > 25


# --- where matches lie -----------------------------------------------------------------------------------------------


def learner():
    """A network that compares local texture, small enough to learn a few pairs by heart."""
    torch.manual_seed(0)
    return LoFTRVessel(
        LoFTRSettings(
            stem="raw",
            initial_dim=16,
            block_dims=(16, 16, 32),
            heads=4,
            coarse_layers=1,
            temperature=0.07,
            unit_features=True,
            position_scale=0.0,
            cell_offset_px=0.0,
        )
    )


@pytest.fixture(scope="module")
def overfitted():
    """The learner after a hundred steps on two turned pairs, with the pairs and its losses."""
    size = (96, 96)
    H = torch.stack(
        [
            torch.from_numpy(
                affine_about(angle, 1.0, 0.0, image_centre(size), image_centre(size) + shift)
            ).float()
            for angle, shift in ((8.0, [5.0, -3.0]), (-12.0, [-6.0, 9.0]))
        ]
    )
    moving = textures(2, 96, seed=3)
    fixed = warp_image(moving, H, size)
    fov = torch.ones_like(fixed)
    matches = find_cell_matches(H, fov, fov, COARSE_STRIDE)
    weights = VesselWeights(torch.ones(2, 144), torch.ones(2, 144), 0.0)
    objective = VesselObjective(VesselLossSettings(focal_gamma=0.0), HALF_WINDOW_PX)
    model = learner().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(100):
        features = model(fixed, moving, matches)
        terms = objective(*features, matches, matches, weights)
        total = objective.total({name: term.mean() for name, term in terms.items()})
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append({name: term.mean().item() for name, term in terms.items()})
    return model, fixed, moving, H, losses


def test_both_losses_fall_on_pairs_learnt_by_heart(overfitted):
    losses = overfitted[-1]
    assert (
        losses[-1]["coarse"] < 0.2 * losses[0]["coarse"]
        and losses[-1]["fine"] < 0.3 * losses[0]["fine"]
    )


def working_image(image, seen=None):
    """A (1, 96, 96) texture that fills its working frame, or part of it."""
    seen = np.ones((96, 96), bool) if seen is None else seen
    return WorkingImage(image[0].numpy(), seen, WorkingFrame(np.eye(3), (96, 96)))


def match_working(matcher, fixed, moving):
    return matcher.match_described(
        matcher.describe(fixed, "fixed"), matcher.describe(moving, "moving")
    )


def test_matches_of_pairs_learnt_by_heart_are_right_to_a_pixel(overfitted):
    model, fixed, moving, H, _ = overfitted
    # In the aligned round the network sees a picture that it did not learn by heart.
    for index, aligned_round, limit_px in (
        (0, False, 1.0),
        (1, False, 1.0),
        (0, True, 2.0),
        (1, True, 2.0),
    ):
        matcher = LoFTRMatcher(
            model,
            LoFTRMatchSettings(
                min_cell_confidence=0.1, field_margin_px=0, aligned_round=aligned_round
            ),
        )
        matches = match_working(matcher, working_image(fixed[index]), working_image(moving[index]))
        error = np.linalg.norm(
            warp_points(matches.fixed_points, H[index].double().numpy()) - matches.moving_points,
            axis=1,
        )
        assert len(error) > 40 and np.median(error) < limit_px, (
            aligned_round,
            len(error),
            np.median(error),
        )
    assert model.training


def test_matcher_restores_the_mode_of_the_network(small):
    matcher = LoFTRMatcher(small.train(), LoFTRMatchSettings(long_side=64))
    fixed, moving = textures(2).numpy()[:, 0]
    matches = matcher.match(fixed, moving)
    assert small.training and len(matches.fixed_points) == len(matches.moving_points) == len(
        matches.similarity
    )
    with pytest.raises(RuntimeError, match="evaluation mode"):
        small.describe(textures(1))


def test_no_match_outside_the_field_of_view(overfitted):
    model, fixed, moving, _, _ = overfitted
    left = np.zeros((96, 96), bool)
    left[:, :48] = True
    matcher = LoFTRMatcher(
        model, LoFTRMatchSettings(min_cell_confidence=0.0, field_margin_px=0, aligned_round=False)
    )
    matches = match_working(matcher, working_image(fixed[0], left), working_image(moving[0], left))
    assert len(matches.fixed_points) > 10 and matches.fixed_points[:, 0].max() < 48
    assert matches.moving_points[:, 0].max() < 48 + HALF_WINDOW_PX


# --- checkpoints of ours ---------------------------------------------------------------------------------------------


def test_checkpoint_rebuilds_the_matcher(small, tmp_path):
    settings = LoFTRMatchSettings(long_side=64, min_cell_confidence=0.01)
    save_checkpoint(
        tmp_path / "best.pth", describe_model(SMALL_LOFTR, settings) | {"model": small.state_dict()}
    )
    matcher, _ = load_matcher(tmp_path / "best.pth")
    assert (
        isinstance(matcher, LoFTRMatcher)
        and matcher.settings == settings
        and not matcher.model.training
    )
    fixed, moving = textures(2).numpy()[:, 0]
    ours = LoFTRMatcher(small, settings).match(fixed, moving)
    assert np.array_equal(ours.moving_points, matcher.match(fixed, moving).moving_points)
    assert load_matcher(tmp_path / "best.pth", long_side=128)[0].settings.long_side == 128
    assert "loaded all" in load_pretrained(build_model(SMALL_LOFTR), tmp_path / "best.pth")
    with pytest.raises(InputError, match="do not fit this architecture"):
        load_pretrained(learner(), tmp_path / "best.pth")


def test_checkpoint_of_an_unknown_kind_is_refused(small, tmp_path):
    content = describe_model(SMALL_LOFTR, LoFTRMatchSettings()) | {
        "model": small.state_dict(),
        "kind": "eloftr",
    }
    save_checkpoint(tmp_path / "other.pth", content)
    with pytest.raises(InputError, match="kind 'eloftr'"):
        load_matcher(tmp_path / "other.pth")
