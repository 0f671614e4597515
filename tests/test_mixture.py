"""Several data sets and modes in one run: shares of the views, names of samples, resume."""

from __future__ import annotations

import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import yaml
from helpers import assert_equal_nested, error_of, run_main, without_measured

import evaluate
from training.batches import ViewBatches
from training.loop_settings import TrainSettings
from training.mixture import Mixture, mix
from utils.checkpoint import read_checkpoint
from utils.errors import InputError

# Data set and mode of eleven samples.
LABELS = [("A", "x")] * 2 + [("A", "y")] * 2 + [("B", "x")] * 1 + [("B", "y")] * 6
SETTINGS = TrainSettings(batch_size=4, views_per_sample=8)


def shares(mixture: Mixture, n_views: int = 1000) -> dict[tuple[str, str], float]:
    """Share of the views of each data set and mode."""
    views = np.concatenate(mixture.views_of_epoch(n_views, np.random.default_rng(0)))
    assert len(views) == len(set(views.tolist())) == n_views, "all different"
    counts = Counter(LABELS[index % len(LABELS)] for index in views)
    return {label: count / n_views for label, count in counts.items()}


def of(data_weight: list[float], mode_weight: list[float]) -> Mixture:
    return mix(LABELS, ["A", "B"], ["x", "y"], data_weight, mode_weight)


def test_views_are_shared_by_weight():
    assert shares(of([3, 1], [])) == {
        ("A", "x"): pytest.approx(0.375, abs=2e-3),
        ("A", "y"): pytest.approx(0.375, abs=2e-3),
        ("B", "x"): pytest.approx(0.25 / 7, abs=2e-3),
        ("B", "y"): pytest.approx(0.25 * 6 / 7, abs=2e-3),
    }
    assert shares(of([], [1, 1])) == {
        ("A", "x"): pytest.approx(0.5 * 2 / 3, abs=2e-3),
        ("A", "y"): pytest.approx(0.5 * 2 / 8, abs=2e-3),
        ("B", "x"): pytest.approx(0.5 * 1 / 3, abs=2e-3),
        ("B", "y"): pytest.approx(0.5 * 6 / 8, abs=2e-3),
    }
    assert shares(of([3, 1], [4, 1])) == {
        ("A", "x"): 0.6,
        ("A", "y"): 0.15,
        ("B", "x"): 0.2,
        ("B", "y"): 0.05,
    }


def test_the_samples_of_a_group_are_shown_equally_often():
    views = np.concatenate(of([1, 1], [1, 1]).views_of_epoch(101, np.random.default_rng(0)))
    counts = Counter(int(index) % len(LABELS) for index in views)
    for label in set(LABELS):
        own = [counts[i] for i, each in enumerate(LABELS) if each == label]
        assert max(own) - min(own) <= 1
    assert sum(counts.values()) == 101


def test_without_weights_the_order_is_that_of_one_data_set():
    batches = ViewBatches(11, SETTINGS, seed=3, mixture=of([], []))
    batches.epoch = 2
    order = np.random.default_rng([3, 2]).permutation(88)
    assert [key.index for batch in batches for key in batch] == order.tolist()


def test_a_mixed_epoch_is_the_same_for_any_number_of_processes_and_when_resumed():
    def keys(rank: int, world: int, first_step: int = 0) -> list[list]:
        batches = ViewBatches(11, SETTINGS, 3, rank, world, of([5, 1], [1, 2]))
        batches.epoch, batches.first_step = 4, first_step
        return list(batches)

    whole = keys(0, 1)
    assert len(whole) == 22 and all(len(batch) == 4 for batch in whole), "as without weights"
    for batch, first, second in zip(whole, keys(0, 2), keys(1, 2), strict=True):
        assert sorted(batch) == sorted(first + second)
    assert keys(0, 1, first_step=7) == whole[7:]


@pytest.mark.parametrize(
    ("data_weight", "mode_weight", "words"),
    [
        ([1], [], "--data_weight 1: give one weight for each of A, B"),
        ([], [1, 2, 3], "--mode_weight 1 2 3: give one"),
        ([1, 0], [], "--data_weight 1 0: weights must be above 0"),
        ([], [float("nan"), 1], "above 0"),
    ],
)
def test_impossible_weights_are_refused(data_weight, mode_weight, words):
    with pytest.raises(InputError, match=words):
        of(data_weight, mode_weight)


def test_a_weight_for_samples_that_do_not_exist_is_refused():
    labels = [("A", "x"), ("B", "x"), ("B", "y")]
    with pytest.raises(InputError, match="A: no training sample of mode y"):
        mix(labels, ["A", "B"], ["x", "y"], [1, 1], [1, 1])
    assert mix(labels, ["A", "B"], ["x", "y"], [1, 1], []).shares == (0.5, 0.25, 0.25)


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tiny_data, tiny_config, tmp_path_factory, forked_runs):
    """A run on two data sets with equal numbers of eyes, and what it was called with."""
    folder = tmp_path_factory.mktemp("mixed")
    roots = [shutil.copytree(tiny_data, folder / name) for name in ("one", "two")]
    which = ["--save", folder / "save", "--mode", "cffa", "cfoct"]
    new = [*which, "--config", tiny_config, "--epoch", 2, "--data", *roots]
    new += ["--data_weight", 3, 1, "--mode_weight", 1, 1, "--set", "validation.pairs=4"]
    reply = forked_runs(*new, "--name", "whole")
    assert reply["codes"] == [0], reply["output"]
    return which, new, folder / "save" / "cffa_cfoct", reply["events"]


@pytest.mark.slow
def test_samples_of_several_data_sets_keep_their_own_names(mixed, forked_runs, tiny_config):
    which, _, save, _ = mixed
    content = read_checkpoint(save / "whole" / "latest.pth")
    files = content["config"]["files"]
    assert len(files) == 24 and {"one_cffa_1_A", "two_cffa_1_A"} <= set(files)
    split = yaml.safe_load((save / "whole" / "split.yaml").read_text())
    for part in ("train", "val", "test"):
        of_each = [
            [eye.removeprefix(f"{name}/") for eye in split[part] if eye.startswith(f"{name}/")]
            for name in ("one", "two")
        ]
        assert of_each[0] == of_each[1] != [], "each data set is divided on its own"
    assert {key.split("_")[0] for key in content["extra"]["value_map"]["places"]} == {"one", "two"}
    log = (save / "whole" / "validation_log.txt").read_text()
    assert "one_cff" in log and "two_cff" in log, "the first pairs are of both data sets"


@pytest.mark.slow
def test_a_mixed_run_that_is_stopped_and_resumed_equals_an_uninterrupted_one(mixed, forked_runs):
    which, new, save, n_events = mixed
    at = int(0.6 * n_events)
    reply = forked_runs(*new, "--name", "stopped", signal=int(signal.SIGKILL), at=at)
    assert reply["codes"] == [-signal.SIGKILL]
    resume = [*which, "--name", "stopped", "--resume"]
    roots = new[new.index("--data") + 1 :][:2]
    for arguments, words in (
        (["--data_weight", 1, 1], "--data_weight was [3.0, 1.0]"),
        (["--data", *roots[::-1]], "their order"),
        (["--data", roots[0]], "eyes, files"),
    ):
        assert words in error_of(forked_runs(*resume, *arguments))
    assert forked_runs(*resume)["codes"] == [0]
    contents = [read_checkpoint(save / name / "latest.pth") for name in ("stopped", "whole")]
    assert_equal_nested(*map(without_measured, contents))


@pytest.mark.slow
def test_one_of_the_data_sets_is_evaluated_by_the_split_of_the_mixed_run(
    mixed, monkeypatch, tmp_path, capsys
):
    _, new, save, _ = mixed
    root = new[new.index("--data") + 2]
    arguments = f"--generated {root} --split {save / 'whole' / 'split.yaml'} --compare identity"
    arguments += f" --rotations 0 --no_pictures --report_cases 0 --out {tmp_path / 'out'}"
    assert run_main(evaluate, monkeypatch, *arguments.split()) == 0
    split = yaml.safe_load((save / "whole" / "split.yaml").read_text())
    (eye,) = {eye.removeprefix("two/") for eye in split["test"] if eye.startswith("two/")}
    assert f"cffa_{eye}_A" in (tmp_path / "out" / "pairs.csv").read_text()


@pytest.mark.slow
def test_data_sets_of_equal_names_are_refused(tiny_data, tiny_config, tmp_path, forked_runs):
    other = shutil.copytree(tiny_data, tmp_path / tiny_data.name)
    arguments = ["--save", tmp_path, "--config", tiny_config, "--data", tiny_data, other]
    assert "need different names" in error_of(forked_runs(*arguments, "--name", "run"))


# --- real samples ---------------------------------------------------------------------------------


def real_mixture(share: float) -> Mixture:
    """Samples 0 to 7 are generated; 8 and 9 are real, 10 does not teach."""
    generated = Mixture((tuple(range(8)),), (1.0,), 11)
    return generated.joined(Mixture(((8,), (9,)), (0.75, 0.25), 11), share)


def test_real_samples_have_their_share_of_every_batch_and_process():
    batches = ViewBatches(11, SETTINGS, seed=1, mixture=real_mixture(0.5))
    indices = np.array([[key.index % 11 for key in batch] for batch in batches])
    assert len(indices) == 22
    assert ((indices >= 8).sum(1) == 2).all()
    assert (indices != 10).all()
    assert Counter(indices[indices >= 8].tolist()) == {8: 33, 9: 11}
    of_ranks = [(indices[:, rank::2] >= 8).any() for rank in (0, 1)]
    assert all(of_ranks), "each process gets real and generated views"
    with_three = ViewBatches(11, SETTINGS, seed=1, mixture=real_mixture(0.3))
    counts = [sum(key.index % 11 >= 8 for key in batch) for batch in with_three]
    assert set(counts) == {1, 2} and sum(counts) == pytest.approx(0.3 * 88, abs=1)


def test_an_epoch_with_real_samples_is_the_same_for_any_number_of_processes():
    def keys(rank: int, world: int, first_step: int = 0) -> list[list]:
        batches = ViewBatches(11, SETTINGS, 3, rank, world, real_mixture(0.5))
        batches.epoch, batches.first_step = 4, first_step
        return list(batches)

    whole = keys(0, 1)
    first, second = keys(0, 2), keys(1, 2)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert keys(0, 1, first_step=5) == whole[5:]


def test_real_images_alone():
    assert set(
        np.concatenate(real_mixture(1.0).views_of_epoch(12, np.random.default_rng(0))) % 11
    ) == {8, 9}
