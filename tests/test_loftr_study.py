"""The study of LoFTR v3: its photographs, its scores and its cost figures."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from benchmarks.loftr_cost import compare_costs, measure_cost
from benchmarks.loftr_scores import (
    PHOTOGRAPHS,
    find_error,
    photograph_pairs,
    score_generated,
    score_real,
    share,
)
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from geometry.estimation import Plausibility
from geometry.matrices import turn_about_centre
from geometry.points import image_corners, warp_points
from registration.matcher import MatchSettings, WorkingMatches
from training.loftr_config import LoFTRConfig
from utils.config import build


@pytest.fixture(scope="module")
def pairs():
    return photograph_pairs(views=1)


def test_photograph_pairs_agree_under_their_homography(pairs):
    assert len({pair.key for pair in pairs}) == len(PHOTOGRAPHS) == len(pairs)
    for pair in pairs:
        height, width = pair.fixed.shape
        points = (
            np.random.default_rng(0)
            .uniform([0.35 * width, 0.35 * height], [0.65 * width, 0.65 * height], (300, 2))
            .round()
        )
        mapped = warp_points(points, pair.H_fix_to_mov).round().astype(int)
        assert ((mapped >= 0) & (mapped < [width, height])).all(), pair.key
        x, y = points.astype(int).T
        seen, same = pair.fixed[y, x], pair.moving[mapped[:, 1], mapped[:, 0]]
        assert (
            np.median(np.abs(seen - same)) < 0.5 * np.median(np.abs(seen - np.roll(same, 7))) + 0.02
        ), pair.key


def test_photograph_pairs_depend_on_the_seed_only(pairs):
    again = photograph_pairs(views=1)
    assert all(np.array_equal(a.moving, b.moving) for a, b in zip(pairs, again, strict=True))
    assert not np.array_equal(photograph_pairs(views=1, seed=1)[0].moving, pairs[0].moving)


def small_config():
    model = {
        "stem": "ridge",
        "initial_dim": 8,
        "block_dims": [8, 8, 16],
        "heads": 2,
        "coarse_layers": 1,
    }
    return build(
        LoFTRConfig,
        {
            "model": model,
            "view": {"img_size": 64, "long_side": 96},
            "v3": {"freeze": ["backbone"], "train": {"batch_size": 2}},
        },
        "test",
    )


def test_cost_of_frozen_and_unfrozen_steps(generated_root):
    config = small_config()
    frozen, unfrozen = (
        measure_cost(config, freeze, str(generated_root), "cffa", 3)
        for freeze in (config.v3.freeze, ())
    )
    for cost in (frozen, unfrozen):
        assert cost.seconds > 0 and cost.memory_mb > 50
    assert "(100%)" in unfrozen.parameters and "(100%)" not in frozen.parameters


@pytest.mark.slow
def test_costs_are_measured_in_new_processes_and_compared(generated_root):
    text = compare_costs(small_config(), str(generated_root), "cffa", steps=3, repeats=1)
    head, _, frozen, unfrozen, _, sentence = text.splitlines()
    assert head == "|  | parameters | seconds per step | peak memory, MB |"
    assert frozen.startswith("| frozen |") and "(100%)" in unfrozen
    assert sentence.startswith("A frozen step is ") and sentence.endswith(" MB less.")


class TrueMatcher:
    """A matcher that returns exact matches under a given ``H_fix_to_mov`` (3, 3)."""

    def __init__(self, H_fix_to_mov):
        self.H, self.settings = (
            H_fix_to_mov,
            MatchSettings(long_side=128, refine=False, min_confidence=0.0),
        )

    def match_copies(self, fixed, moving, smaller_copies=True):
        points = np.stack(
            np.meshgrid(np.linspace(8, 118, 12), np.linspace(8, 118, 12)), -1
        ).reshape(-1, 2)
        H = moving.frame.H_image_to_working @ self.H @ np.linalg.inv(fixed.frame.H_image_to_working)
        yield WorkingMatches(
            points, warp_points(points, H), np.ones(len(points)), fixed, moving, points, points
        )


def test_errors_of_true_and_wrong_matrices_differ(generated_root, tmp_path):
    (tmp_path / "split.yaml").write_text("train: ['3']\nval: ['2']\ntest: ['1']\n")
    samples = [
        sample for sample in discover_samples(generated_root, ["cffa"])[0] if sample.eye == "1"
    ]
    assert len(samples) == 2
    wrong = score_generated(
        TrueMatcher(np.eye(3)), Plausibility(), generated_root, "cffa", tmp_path / "split.yaml"
    )
    assert len(wrong) == 4 and min(wrong) > 5
    pair = photograph_pairs(views=1)[0]
    corners = image_corners(pair.fixed.shape)
    error = find_error(
        TrueMatcher(pair.H_fix_to_mov),
        Plausibility(),
        pair.fixed,
        pair.moving,
        corners,
        warp_points(corners, pair.H_fix_to_mov),
        "homography",
    )
    assert error.max < 0.5
    assert share([error.mean, float("inf"), 7.0]) == "1/3 (7.0 px)"


@pytest.mark.parametrize("rotation", [0, 30])
def test_landmarks_of_real_pairs_are_rotated_with_their_images(numbered_root, rotation):
    root, truth = numbered_root
    for pair in load_real_pairs(root, "cffa"):
        H_turn, _ = turn_about_centre(pair.images()[1].shape, rotation)
        errors = score_real(TrueMatcher(H_turn @ truth[pair.key]), Plausibility(), [root], rotation)
        assert min(errors) < 0.5 and len(errors) == 3


def test_both_configs_fit_their_schema():
    for name in ("loftr_v3", "loftr_v3_lite"):
        with open(f"configs/{name}.yaml", encoding="utf-8") as handle:
            config = build(LoFTRConfig, yaml.safe_load(handle), name)
        assert (
            config.v3.freeze == ("backbone", "pos_encoding", "fine_preprocess")
            and config.base.freeze == ()
        )
        assert config.v3.loss.eps == 1e-4 and not config.v3.photometric
