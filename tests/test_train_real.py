"""Training on real images: landmark pairs, registered pairs and single images with generated ones.

The real pairs are small generated ones in the layout of real data: of unlike sizes, without masks.
"""

from __future__ import annotations

import csv
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from helpers import (
    assert_equal_nested,
    error_of,
    make_pair,
    run_main,
    without_measured,
    write_numbered_pair,
)

import evaluate
from utils.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

TABLE_HEADER = "id,eye,fixed,moving"


@pytest.fixture(scope="module")
def real_roots(generated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder of four landmark pairs of four eyes, a folder of images, and a table of pairs."""
    folder = tmp_path_factory.mktemp("real")
    for number in (1, 2, 3, 4):
        pair = make_pair(generated_root / f"{number}_A", "cf", "fa_gen", 4.0 * number, 0.95)
        if number == 4:  # the fewest points that give an affine matrix
            pair = (*pair[:3], pair[3][:3], pair[4][:3])
        write_numbered_pair(folder / "marked", f"{number}_1", f"{number:03d}", pair)
    (folder / "single").mkdir()
    for number in (5, 6):
        name = f"{number}_A_fa_gen.png"
        shutil.copy(generated_root / f"{number}_A" / name, folder / "single" / name)
    rows = [
        f"p{number},{number},{eye / f'{eye.name}_cf.png'},{eye / f'{eye.name}_fa_gen.png'}"
        for number, eye in ((5, generated_root / "5_B"), (6, generated_root / "6_B"))
    ]
    (folder / "pairs.csv").write_text("\n".join([TABLE_HEADER, *rows]) + "\n", encoding="utf-8")
    return [folder / "marked", folder / "single", folder / "pairs.csv"]


@pytest.fixture(scope="module")
def whole(tiny_data, tiny_config, real_roots, tmp_path_factory, forked_runs):
    """A run on real and generated images: how it was called, its folder, number of events."""
    save = tmp_path_factory.mktemp("save")
    new = ["--save", save, "--config", tiny_config, "--data", tiny_data, "--epoch", 2]
    new += ["--real", *real_roots, "--real_share", 0.5, "--batch_size", 4]
    new += ["--set", "match.try_turns=false", "match.smaller_copy=1"]
    reply = forked_runs(*new, "--name", "whole")
    assert reply["codes"] == [0], reply["output"]
    return new, save, reply


def test_all_forms_train_together(whole, real_roots):
    _, save, reply = whole
    content = read_checkpoint(save / "cffa" / "whole" / "latest.pth")
    last = content["history"][-1]
    for form in ("generated", "landmarks", "self"):
        assert last[f"des_{form}"] > 0, form
    assert last["det_landmarks"] == 0, "no labels of the detector"
    assert last["real_share"] == 0.5
    split = yaml.safe_load((save / "cffa" / "whole" / "split.yaml").read_text())
    named = [eye for part in ("train", "val", "test") for eye in split["real"][part]]
    assert len(named) == len(set(named)) == 8
    assert {eye.split("/")[0] for eye in split["real"]["val"] + split["real"]["test"]} == {"marked"}
    seen = {*content["extra"]["value_map"]["views"]}
    hidden = split["real"]["val"] + split["real"]["test"]
    for eye in hidden:
        number = eye.split("/")[1]
        assert not any(key.startswith(f"marked_{number}_") for key in seen), "kept back"
    assert any(key.startswith("single_") for key in seen)
    assert "rate_real" in " ".join(last), "the validation eye is validated"
    with open(save / "cffa" / "whole" / "teaching" / "pairs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["form"] for row in rows} == {"landmarks", "registered"}
    assert "landmarks, a homography needs 10" in reply["output"]


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(whole, forked_runs):
    new, save, reply = whole
    at = int(0.7 * reply["events"])
    stopped = forked_runs(*new, "--name", "stopped", signal=int(signal.SIGKILL), at=at)
    assert stopped["codes"] == [-signal.SIGKILL]
    resume = ["--save", save, "--name", "stopped", "--resume"]
    assert "--real was" in error_of(forked_runs(*resume, "--real", save))
    reply = forked_runs(*resume)
    assert reply["codes"] == [0], reply["output"]
    contents = [
        read_checkpoint(save / "cffa" / name / "latest.pth") for name in ("stopped", "whole")
    ]
    assert_equal_nested(*map(without_measured, contents))


def test_two_processes_train_on_the_same_real_images(whole, forked_runs):
    new, save, _ = whole
    reply = forked_runs(*new, "--name", "two", processes=2)
    assert reply["codes"] == [0, 0], reply["output"]
    ours, one = (read_checkpoint(save / "cffa" / name / "latest.pth") for name in ("two", "whole"))
    assert ours["history"][1]["des_landmarks"] == pytest.approx(
        one["history"][1]["des_landmarks"], rel=2e-2
    )
    assert ours["extra"]["teaching"]["records"].keys() == one["extra"]["teaching"]["records"].keys()


def test_the_test_eyes_of_a_run_are_evaluated(whole, real_roots, monkeypatch, tmp_path):
    _, save, _ = whole
    manifest = save / "cffa" / "whole" / "split.yaml"
    arguments = f"--real {real_roots[0]} --real_split {manifest} --compare identity --rotations 0"
    arguments += f" --no_pictures --report_cases 0 --out {tmp_path / 'out'}"
    assert run_main(evaluate, monkeypatch, *arguments.split()) == 0
    (eye,) = yaml.safe_load(manifest.read_text())["real"]["test"]
    with open(tmp_path / "out" / "pairs.csv", encoding="utf-8") as file:
        names = [row["id"] for row in csv.DictReader(file)]
    assert len(names) == 1 and eye.split("/")[1] in names[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--real", "nowhere"], "--real nowhere: no such folder"),
        (["--real_forms", "masks"], "masks: choose from landmarks"),
        (["--real_weight", 1], "--real_weight 1: give one weight"),
        (["--real_share", 1.5], "--real_share 1.5"),
    ],
)
def test_wrong_arguments_are_refused(more, words, whole, forked_runs):
    new, _, _ = whole
    assert words in error_of(forked_runs(*new, "--name", "wrong", *more))
