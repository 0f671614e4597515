"""The bare view of the project's own methods, and the untrained network beside them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import SMALL_LOFTR, read_table, run_main

import evaluate
from evaluation.method import MethodOptions
from evaluation.method_builders import working_pair
from evaluation.method_registry import load_method, load_methods
from evaluation.sets import EvaluationPair
from registration.keypoint_matcher import SuperRetinaMatcher
from registration.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings
from registration.trained_matchers import (
    build_model,
    describe_model,
    load_matcher,
    untrained_matcher,
)
from utils.checkpoint import save_checkpoint
from utils.image_files import read_gray


@pytest.fixture(scope="module")
def pair(generated_root) -> EvaluationPair:
    """A photograph and the angiogram of the same eye, rotated by 90 degrees."""
    folder = generated_root / "1_A"
    fixed, moving = (read_gray(folder / f"1_A_{name}.png") for name in ("cf", "fa_gen"))
    points = np.zeros((0, 2))
    return EvaluationPair(
        key="a",
        eye="1",
        fixed=fixed,
        moving=np.ascontiguousarray(np.rot90(moving)),
        fixed_landmarks=points,
        moving_landmarks=points,
    )


@pytest.fixture(scope="module")
def trained_weights(tmp_path_factory, untrained_weights):
    """A checkpoint whose weights are not the initial ones of any seed."""
    matcher, plausibility = load_matcher(untrained_weights)
    with torch.no_grad():
        for parameter in matcher.model.parameters():
            parameter.add_(0.01)
    path = tmp_path_factory.mktemp("trained") / "best.pth"
    described = describe_model(matcher.model.settings, matcher.settings, plausibility)
    save_checkpoint(path, described | {"model": matcher.model.state_dict()})
    return path


def _options(weights, **changes) -> MethodOptions:
    given = dict.fromkeys(("superretina", "untrained"), str(weights))
    return replace(MethodOptions(weights=given, device="cpu"), **changes)


def _count_looks(monkeypatch, method, pair) -> int:
    """How often the network describes a moving image while the method runs."""
    roles = []
    describe = SuperRetinaMatcher.describe

    def counted(self, working, role):
        roles.append(role)
        return describe(self, working, role)

    monkeypatch.setattr(SuperRetinaMatcher, "describe", counted)
    method.run(pair)
    return roles.count("moving")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["superretina", "untrained"])
def test_the_bare_view_is_one_look(name, pair, trained_weights, monkeypatch):
    whole = load_method(name, _options(trained_weights))
    bare = load_method(name, _options(trained_weights, bare=True))
    assert _count_looks(monkeypatch, bare, pair) == 1
    assert _count_looks(monkeypatch, whole, pair) >= 4, "the copies rotated by quarter turns"
    assert bare.settings["bare"] and not whole.settings["bare"]
    changed = {key for key, value in whole.settings.items() if bare.settings[key] != value}
    assert changed == {"bare", "match"}
    assert {
        key
        for key, value in whole.settings["match"].items()
        if bare.settings["match"][key] != value
    } == {
        "try_turns",
        "smaller_copy",
        "try_mirrored",
        "refine",
        "min_confidence",
        "guided_radii_px",
    }


def test_only_own_methods_have_another_name_in_the_bare_view(trained_weights):
    names = ["sift", "superretina", "identity", "untrained"]
    methods, _ = load_methods(names, _options(trained_weights, bare=True))
    assert list(methods) == ["sift", "superretina-bare", "identity", "untrained-bare"]
    whole, _ = load_methods(names, _options(trained_weights))
    assert list(whole) == names and whole["sift"].settings == methods["sift"].settings


def test_untrained_alone_gives_the_others_its_working_size(trained_weights):
    methods, _ = load_methods(["sift", "untrained"], _options(trained_weights))
    assert methods["sift"].settings["working_size"] == 192


def test_untrained_weights_depend_on_the_seed_alone(trained_weights):
    trained, _ = load_matcher(trained_weights)
    before = torch.get_rng_state()
    first, again, other = (untrained_matcher(trained_weights, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before), "the global random state is untouched"
    assert first.settings == trained.settings and not first.model.training
    state, same, others, learned = (
        dict(matcher.model.state_dict()) for matcher in (first, again, other, trained)
    )
    assert state.keys() == learned.keys()
    assert all(torch.equal(value, same[name]) for name, value in state.items())
    weights = [name for name, _ in first.model.named_parameters() if name.endswith("weight")]
    assert weights and not any(torch.equal(state[name], learned[name]) for name in weights)
    assert any(not torch.equal(state[name], others[name]) for name in weights)
    # The filters of the ridge stem are among the buffers.
    buffers, of_trained = dict(first.model.named_buffers()), dict(trained.model.named_buffers())
    assert buffers and all(torch.equal(buffers[name], of_trained[name]) for name in buffers)


def test_untrained_descriptors_of_another_seed_differ(pair, trained_weights):
    working = working_pair(pair, 192).fixed
    features = [untrained_matcher(trained_weights, s).describe(working, "fixed") for s in (0, 0, 1)]
    first, again, other = (each.descriptors for each in features)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.allclose(first, other)


def test_untrained_follows_the_kind_of_the_weights(tmp_path):
    described = describe_model(SMALL_LOFTR, LoFTRMatchSettings(long_side=64))
    path = tmp_path / "loftr.pth"
    save_checkpoint(path, described | {"model": build_model(SMALL_LOFTR).state_dict()})
    assert isinstance(untrained_matcher(path, 0), LoFTRMatcher)
    method = load_method("untrained", _options(path, bare=True, untrained_seed=3))
    assert method.settings["kind"] == "loftr_vessel" and method.settings["seed"] == 3
    assert not method.settings["match"]["aligned_round"] and method.settings["bare"]


@pytest.mark.slow
def test_both_views_stand_in_one_folder_under_their_own_names(
    numbered_root, trained_weights, monkeypatch, tmp_path, capsys
):
    run = partial(run_main, evaluate, monkeypatch)
    given = ("--real", numbered_root[0], "--out", tmp_path / "out", "--device", "cpu")
    given += ("--rotations", 0, "--weights", trained_weights, "--no_pictures", "--compare")
    assert run(*given, "untrained", "superretina", "identity", "--bare") == 0
    rows = read_table(tmp_path / "out" / "pairs.csv")
    assert {row["method"] for row in rows} == {"untrained-bare", "superretina-bare", "identity"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Bare view:" in page and "untrained-bare" in capsys.readouterr().out
    assert run(*given, "superretina") == 0
    more = read_table(tmp_path / "out" / "pairs.csv")
    assert more[: len(rows)] == rows and {row["method"] for row in more[len(rows) :]} == {
        "superretina"
    }
    capsys.readouterr()
    assert run(*given, "untrained", "--bare", "--untrained_seed", 1) == 2
    assert "seed was 0 and is now 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--bare", "--transform", "auto"), "choose affine, similarity or homography"),
        (("--untrained_seed", -1), "--untrained_seed must be"),
    ],
)
def test_wrong_options_are_refused(wrong, message, monkeypatch, tmp_path, capsys):
    assert run_main(evaluate, monkeypatch, "--out", tmp_path, "--real", tmp_path, *wrong) == 2
    assert message in capsys.readouterr().err
