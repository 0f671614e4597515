"""Matches of the LoFTR network: their accuracy after training, field of view, checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import SMALL_LOFTR
from loftr_cases import learner, textures

from geometry.cells import find_cell_matches
from geometry.matrices import affine_about, image_centre
from geometry.points import warp_points
from geometry.rasters import warp_image
from loss.vessel_matching import VesselLossSettings, VesselObjective, VesselWeights
from model.loftr_modules import COARSE_STRIDE, HALF_WINDOW_PX
from model.pretrained import load_pretrained
from registration.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings
from registration.trained_matchers import build_model, describe_model, load_matcher
from registration.working_frame import WorkingFrame, WorkingImage
from utils.checkpoint import save_checkpoint
from utils.errors import InputError


@pytest.fixture()
def small():
    torch.manual_seed(0)
    return build_model(SMALL_LOFTR)


@pytest.fixture(scope="module")
def overfitted():
    """The learner after a hundred steps on two rotated pairs; the pairs, matrices and losses."""
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


@pytest.mark.slow
def test_both_losses_fall_on_the_training_pairs(overfitted):
    losses = overfitted[-1]
    assert (
        losses[-1]["coarse"] < 0.2 * losses[0]["coarse"]
        and losses[-1]["fine"] < 0.3 * losses[0]["fine"]
    )


def working_image(image, seen=None):
    """A (1, 96, 96) texture as a working image; ``seen``: its field of view (default: all)."""
    seen = np.ones((96, 96), bool) if seen is None else seen
    return WorkingImage(image[0].numpy(), seen, WorkingFrame(np.eye(3), (96, 96)))


def match_working(matcher, fixed, moving):
    return matcher.match_described(
        matcher.describe(fixed, "fixed"), matcher.describe(moving, "moving")
    )


@pytest.mark.slow
def test_matches_of_the_training_pairs_are_accurate_to_a_pixel(overfitted):
    model, fixed, moving, H, _ = overfitted
    # The aligned round has a larger limit: its resampled image was not in training.
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


@pytest.mark.slow
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


# --- checkpoints ---


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
