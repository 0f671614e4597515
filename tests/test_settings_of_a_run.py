"""Settings and splits from the command line: --w_*, --set, --split, --split_seed, --fold."""

from __future__ import annotations

import shutil
import signal

import pytest
import yaml
from helpers import error_of

from dataset.split import eyes_in, fold_by_eye, read_manifest, split_as_in, write_manifest
from loss.joint_objective import TERMS
from training.arguments import get_parser
from training.run_config import differences, resolve_config
from training.run_folder import Run
from training.superretina_step import SuperRetinaConfig, add_superretina_arguments
from utils.assignments import parse_assignment
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import to_plain
from utils.errors import InputError

DEFAULT = "configs/superretina_lite.yaml"


def resolved(*arguments: object, saved: dict | None = None) -> SuperRetinaConfig:
    """The config of a run of train_multimodal_e2e.py with these arguments."""
    parser = get_parser("", DEFAULT)
    add_superretina_arguments(parser)
    args = parser.parse_args([str(word) for word in arguments])
    run = Run("run", checkpoint=None if saved is None else "run.pth", saved=saved)
    return resolve_config(SuperRetinaConfig, args, run, DEFAULT)


# --- weights and settings -------------------------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_an_argument_that_sets_its_weight_alone(name):
    before = resolved().loss.weights
    assert resolved(f"--w_{name}", 0.125).loss.weights == before | {name: 0.125}


def test_values_are_read_as_yaml():
    config = resolved(
        "--set", "view.scale=[0.5, 2]", "data.photometric=true", "--set", "view.ramp_epochs=3"
    )
    assert config.view.scale == (0.5, 2.0) and config.view.ramp_epochs == 3
    assert config.data.photometric is True
    assert parse_assignment("a.b={c: [1, x]}") == ("a.b", {"a": {"b": {"c": [1, "x"]}}})


def test_named_arguments_come_on_top_of_set_and_set_on_top_of_the_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("train: {lr: 0.1, batch_size: 2, epochs: 7}\n", encoding="utf-8")
    loop = resolved(
        "--config", file, "--set", "train.lr=0.2", "train.batch_size=6", "--lr", 0.3
    ).train
    assert (loop.lr, loop.batch_size, loop.epochs) == (0.3, 6, 7)


def test_a_weight_that_is_set_leaves_the_default_weights_as_they_are(tmp_path):
    """In a file without loss.weights, too."""
    file = tmp_path / "own.yaml"
    file.write_text("seed: 1\n", encoding="utf-8")
    defaults = resolved("--config", file).loss.weights
    changed = resolved("--config", file, "--set", "loss.weights.geo=2").loss.weights
    assert changed == defaults | {"geo": 2.0}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.larning_rate=1", ["--set train.larning_rate", "unknown key", "known are", "lr"]),
        ("train.lr=fast", ["--set train.lr", "must be float"]),
        ("view.scale=[1]", ["--set view.scale", "list of 2"]),
        ("train=3", ["--set train", "mapping"]),
        ("loss.weights.dett=1", ["--set loss.weights.dett", "unknown term"]),
        ("train.accumulate=0", ["--set train.accumulate", "at least 1"]),
        ("train.lr", ["--set 'train.lr'", "key=value"]),
        (".lr=1", ["key=value"]),
        ("train.lr=[1", ["--set train.lr", "YAML"]),
        ("seed=!!python/name:os.system x", ["--set seed", "YAML"]),
    ],
)
def test_wrong_assignments_are_named(assignment, words):
    with pytest.raises(InputError) as error:
        resolved("--set", assignment)
    assert all(word in str(error.value) for word in words), error.value


def test_a_resumed_run_refuses_other_settings_but_not_free_ones():
    saved = {"settings": to_plain(resolved())}
    assert resolved("--set", "train.workers=0", saved=saved).train.workers == 0
    with pytest.raises(InputError, match="loss.weights.geo was 0.5 and is now 2"):
        resolved("--w_geo", 2, saved=saved)
    with pytest.raises(InputError, match="view.shear"):
        resolved("--set", "view.shear=0.2", saved=saved)


def test_a_setting_that_is_left_out_is_a_difference():
    assert differences({"weights": {"a": 1.0}}, {"weights": {}}) == [
        "weights.a was 1.0 and is now None"
    ]


# --- the split ------------------------------------------------------------------------------------

EYES = [str(number) for number in range(1, 12)]


def test_folds_validate_and_test_on_every_eye_once():
    splits = [fold_by_eye(EYES + EYES, (k, 4), seed=3) for k in range(1, 5)]
    for part in ("val", "test"):
        assert sorted(eye for split in splits for eye in split[part]) == sorted(EYES)
    for split, following in zip(splits, [*splits[1:], splits[0]], strict=True):
        assert sorted(sum(split.values(), [])) == sorted(EYES), "disjoint and complete"
        assert split["test"] == following["val"]
        assert {len(split["val"]), len(split["test"])} <= {2, 3}
    assert splits[0] != fold_by_eye(EYES, (1, 4), seed=4)


@pytest.mark.parametrize("fold", [(1, 2), (0, 3), (4, 3), (1, 12)])
def test_impossible_folds_are_refused(fold):
    with pytest.raises(InputError, match="fold"):
        fold_by_eye(EYES, fold, seed=0)


def test_a_manifest_decides_over_the_eyes_that_are_there(tmp_path):
    path = tmp_path / "split.yaml"
    write_manifest(path, ["x"], 0, {"train": ["1", "2"], "val": ["3", "9"], "test": ["4"]})
    split, absent = split_as_in(path, {"1", "2", "3"}, ["x"])
    assert split == {"train": ["1", "2"], "val": ["3"], "test": []} and absent == ["4", "9"]
    with pytest.raises(InputError, match="eyes 5, 6 are .*not in this split.*leave --split out"):
        split_as_in(path, {"1", "3", "5", "6"}, ["x"])
    with pytest.raises(InputError, match="none of its val eyes"):
        split_as_in(path, {"1", "2", "4"}, ["x"])
    write_manifest(path, ["x"], 0, {"train": ["1", "2"], "val": ["2"], "test": ["4"]})
    with pytest.raises(InputError, match="eye 2 is in more than one part"):
        split_as_in(path, {"1", "2"}, ["x"])


def test_the_eyes_of_one_of_several_data_sets_are_found_in_it(tmp_path):
    assert eyes_in(["a/1", "b/1", "b/2"], tmp_path / "b") == ["1", "2"]
    assert eyes_in(["1", "2"], tmp_path / "b") == ["1", "2"]


@pytest.fixture
def split_of(tiny_config, tiny_data, tmp_path, forked_runs):
    """The split.yaml of a run with these arguments, which is killed at its first step."""

    def run(name: str, *more: object) -> dict:
        arguments = f"--save {tmp_path} --config {tiny_config} --data {tiny_data} --name {name}"
        reply = forked_runs(*arguments.split(), *more, signal=int(signal.SIGKILL), at=1)
        assert reply["codes"] == [-signal.SIGKILL], reply["output"]
        return yaml.safe_load((tmp_path / "cffa" / name / "split.yaml").read_text())

    return run


@pytest.mark.slow
def test_a_split_with_another_seed_is_the_same_split(split_of, tmp_path):
    first = split_of("first")
    assert split_of("other", "--seed", 9) == first
    of_three = split_of("split3", "--split_seed", 3)
    assert of_three != first and of_three["seed"] == 3
    assert split_of("set3", "--set", "data.split_seed=3") == of_three
    taken = split_of("taken", "--split", tmp_path / "cffa" / "split3" / "split.yaml")
    assert taken == of_three | {"seed": None}
    fold = split_of("fold", "--fold", "2/3", "--seed", 4)
    eyes = [str(number) for number in range(1, 7)]
    assert {part: fold[part] for part in ("train", "val", "test")} == fold_by_eye(eyes, (2, 3), 0)


@pytest.mark.slow
def test_a_resumed_run_checks_its_split(tiny_config, tiny_data, tmp_path, forked_runs, split_of):
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(split_of("first")))
    new = f"--save {tmp_path} --config {tiny_config} --data {tiny_data} --epoch 1".split()
    resume = ["--save", tmp_path, "--resume", "--name", "mine"]
    assert forked_runs(*new, "--name", "mine", "--fold", "1/3")["codes"] == [0]
    for arguments, words in (
        (["--fold", "2/3"], "data.fold was [1, 3] and is now [2, 3]"),
        (["--split_seed", 1], "data.split_seed was 0 and is now 1"),
        (["--split", other], "--split was None"),
    ):
        assert words in error_of(forked_runs(*resume, *arguments))
    both = [*new, "--name", "both", "--split", other, "--fold", "1/3"]
    assert "already says which eyes" in error_of(forked_runs(*both))


@pytest.mark.slow
def test_a_run_that_split_by_its_seed_is_resumed_with_its_own_split(
    tiny_config, tiny_data, tmp_path, forked_runs
):
    """Earlier versions had no data.split_seed: the seed of the run was that of the split."""
    new = f"--save {tmp_path} --config {tiny_config} --data {tiny_data} --epoch 1 --seed 3"
    new = [*new.split(), "--split_seed", 3]
    reply = forked_runs(*new, "--name", "run")
    assert reply["codes"] == [0], reply["output"]
    at = int(0.6 * reply["events"])
    folder = tmp_path / "cffa" / "run"
    whole = read_checkpoint(folder / "latest.pth")
    stopped = forked_runs(*new, "--name", "old", signal=int(signal.SIGKILL), at=at)
    assert stopped["codes"] == [-signal.SIGKILL]
    old = shutil.copytree(tmp_path / "cffa" / "old", tmp_path / "cffa" / "older")
    content = read_checkpoint(old / "latest.pth")
    for name in ("split_seed", "fold"):
        del content["config"]["settings"]["data"][name]
    for name in ("part", "data_weight", "mode_weight", "split_file"):
        del content["config"][name]
    for name in ("schedule", "lr_scale", "freeze", "patience"):
        del content["config"]["settings"]["train"][name]
    del content["best_epoch"], content["total_steps"]
    save_checkpoint(old / "latest.pth", content)
    resume = ["--save", tmp_path, "--resume", "--name", "older"]
    refused = error_of(forked_runs(*resume, "--split_seed", 0))
    assert "data.split_seed was 3 and is now 0" in refused
    reply = forked_runs(*resume, "--config", tiny_config, "--seed", 3, "--epoch", 1)
    assert reply["codes"] == [0], reply["output"]
    resumed = read_checkpoint(old / "latest.pth")
    assert resumed["config"] == whole["config"]
    assert read_manifest(old / "split.yaml") == read_manifest(folder / "split.yaml")
