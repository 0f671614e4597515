"""Wrong input: one message that names the file and the remedy, exit code 2, no traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import (
    make_pair,
    run_main,
    save_untrained,
    truncate,
    write_numbered_pair,
    write_points,
)

import evaluate
import register
import train_multimodal_e2e
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from dataset.split import read_manifest
from dataset.views import ViewGeometry
from model.super_retina_multimodal import ModelSettings
from training.engine import Engine
from utils.config import read_yaml
from utils.errors import InputError
from utils.image_files import read_gray, read_mask, write_image

PROJECT = Path(__file__).resolve().parents[1]
LITE = PROJECT / "configs" / "superretina_lite.yaml"


@pytest.fixture
def eye(generated_root, tmp_path) -> Path:
    """A writable generated set of three eyes; returns the folder of the first."""
    for name in ("1_A", "2_A", "3_A"):
        shutil.copytree(generated_root / name, tmp_path / "set" / name)
    return tmp_path / "set" / "1_A"


@pytest.fixture
def real_eye(generated_root, tmp_path) -> Path:
    """A writable real pair 001; returns its folder."""
    pair = make_pair(generated_root / "1_A", "cf", "fa_gen", 12.0, 0.9)
    return write_numbered_pair(tmp_path / "real", "1_1", "001", pair)


def load_first(folder: Path, mode: str = "cffa") -> dict:
    """The first view of the data set that contains ``folder``."""
    samples, _ = discover_samples(folder.parent, [mode])
    return AlignedPairs(samples, ViewGeometry(img_size=64, long_side=192))[ViewKey(0, 0)]


def train(monkeypatch, *arguments: object) -> int:
    """Run train_multimodal_e2e.py on the CPU; returns its exit code."""
    given = () if "--config" in arguments else ("--config", LITE)
    return run_main(
        train_multimodal_e2e, monkeypatch, *given, "--device", "cpu", "--workers", 0, *arguments
    )


# --- generated data ---


def test_missing_and_empty_data_folders(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for name, remedy in (("nowhere", "synthesis"), ("empty", "1_A")):
        assert train(monkeypatch, "--data", tmp_path / name, "--save", tmp_path / "save") == 2
        message = capsys.readouterr().err
        assert str(tmp_path / name) in message and remedy in message
    (tmp_path / "a_file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="a_file"):
        discover_samples(tmp_path / "a_file", ["cffa"])


def test_no_moving_image_for_a_mode(eye):
    for folder in eye.parent.iterdir():
        (folder / f"{folder.name}_fa_gen.png").unlink()
    with pytest.raises(InputError, match=r"_fa_gen.png or .*_fa.png for mode cffa.*--mode"):
        discover_samples(eye.parent, ["cffa"])
    samples, lacking = discover_samples(eye.parent, ["cfoct"])
    assert len(samples) == 3 and lacking == []


def test_mask_of_another_size(eye):
    write_image(eye / "1_A_seg.png", read_mask(eye / "1_A_seg.png")[:-10])
    with pytest.raises(InputError, match="1_A_seg.png: 192 x 182 px.*192 x 192.*resize"):
        load_first(eye)


def test_moving_image_of_another_size(eye):
    write_image(eye / "1_A_fa_gen.png", read_gray(eye / "1_A_fa_gen.png")[:, 5:])
    with pytest.raises(InputError, match="1_A_fa_gen.png: 187 x 192 px.*resize"):
        load_first(eye)


def test_inverted_mask(eye):
    write_image(eye / "1_A_seg.png", ~read_mask(eye / "1_A_seg.png"))
    with pytest.raises(InputError, match="1_A_seg.png.*invert the mask"):
        load_first(eye)


@pytest.mark.parametrize("file", ["1_A_cf.png", "1_A_fa_gen.png", "1_A_seg.png"])
def test_truncated_generated_files(eye, file):
    truncate(eye / file, 0.6)
    with pytest.raises(InputError, match=f"{file}.*truncated"):
        load_first(eye)


def test_black_generated_image(eye):
    write_image(eye / "1_A_fa_gen.png", np.zeros((192, 192), np.uint8))
    with pytest.raises(InputError, match="1_A_fa_gen.png.*black"):
        load_first(eye)


def test_too_few_eyes_to_split(eye, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tmp_path / "set" / "3_A")
    assert train(monkeypatch, "--data", eye.parent, "--save", tmp_path / "save") == 2
    assert "only 2 eyes" in capsys.readouterr().err


# --- real data ---


def test_missing_and_empty_folders_of_real_pairs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nowhere.*--data"):
        load_real_pairs(tmp_path / "nowhere")
    for layout, expected in (("numbered", "NNN_01.png"), ("cfocta", "Ground_Truth")):
        with pytest.raises(InputError, match=f"empty.*{expected}"):
            load_real_pairs(tmp_path / "empty", layout=layout)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_landmarks(real_eye, count):
    points = np.array([[20.0, 30.0], [90.0, 40.0]])[:count]
    for role in ("01", "02"):
        write_points(real_eye / f"001_{role}.txt", points)
    with pytest.raises(InputError, match=f"001_01.txt.*only {count} landmarks.*at least 3"):
        load_real_pairs(real_eye.parent)


def test_unequal_numbers_of_landmarks(real_eye):
    lines = (real_eye / "001_02.txt").read_text(encoding="utf-8").splitlines()
    (real_eye / "001_02.txt").write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(InputError, match="001_01.txt.*8 fixed and 7 moving.*equal"):
        load_real_pairs(real_eye.parent)


@pytest.mark.parametrize("points", [[[20, 30], [40, 50], [60, 70], [80, 90]], [[50, 50]] * 4])
def test_collinear_landmarks(real_eye, points):
    for role in ("01", "02"):
        write_points(real_eye / f"001_{role}.txt", np.array(points, float))
    with pytest.raises(InputError, match="001_01.txt.*one line.*off that line"):
        load_real_pairs(real_eye.parent)


@pytest.mark.parametrize("line", ["12 abc", "12", "1 2 3", "nan 4", "inf 4", "x y"])
def test_landmarks_that_are_not_numbers(real_eye, line):
    path = real_eye / "001_02.txt"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="001_02.txt: line 9"):
        load_real_pairs(real_eye.parent)


def test_missing_landmark_file_and_bad_image(real_eye):
    (real_eye / "001_02.txt").rename(real_eye / "kept.txt")
    with pytest.raises(InputError, match="001_02.txt.*needs one"):
        load_real_pairs(real_eye.parent)
    (real_eye / "kept.txt").rename(real_eye / "001_02.txt")
    truncate(real_eye / "001_02.png", 0.5)
    with pytest.raises(InputError, match="001_02.png.*truncated"):
        load_real_pairs(real_eye.parent)


# --- settings ---


@pytest.mark.parametrize(
    "change, words",
    [
        ({"modle": {}}, ["unknown key modle", "known are", "model"]),
        ({"loss": {"wieghts": {}}}, ["loss", "unknown key wieghts", "weights"]),
        (
            {"loss": {"pke": {"rate": 0.1, "boost": 2}}},
            ["loss: pke", "unknown keys boost, rate", "learning_rate"],
        ),
        ({"train": {"lr": "fast"}}, ["train: lr", "float", "'fast'"]),
        ({"train": {"batch_size": 2.5}}, ["train: batch_size", "int"]),
        ({"train": {"workers": True}}, ["train: workers", "int"]),
        ({"data": {"photometric": "yes please"}}, ["data: photometric", "bool"]),
        ({"view": {"scale": [0.7]}}, ["view: scale", "2 values"]),
        ({"view": 3}, ["view", "mapping"]),
        ({"loss": {"weights": {"dett": 1.0}}}, ["weights", "dett", "des", "pke"]),
        ({"loss": {"descriptor": "hinge"}}, ["hinge", "infonce"]),
        ({"model": {"architecture": "resnet"}}, ["resnet", "lite"]),
    ],
)
def test_unusable_configs(tmp_path, monkeypatch, capsys, change, words):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(change), encoding="utf-8")
    assert train(monkeypatch, "--config", path, "--save", tmp_path / "save") == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert "mine.yaml" in message, message
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("text", ["model: [", "- 1\n- 2\n", "\tmodel: 1", ""])
def test_configs_that_are_no_mapping(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="mine.yaml"):
        read_yaml(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match="nowhere.yaml.*configs"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--precision", "fp16"), ["fp16", "bf16"]),
        (("--img_size", "250"), ["--img_size 250", "multiple of 32"]),
        (("--img_size", "0"), ["--img_size 0"]),
        (("--epoch", "0"), ["--epoch"]),
        (("--batch_size", "0"), ["--batch_size"]),
        (("--lr", "-1"), ["--lr"]),
        (("--rotation", "-20"), ["--rotation"]),
        (("--workers", "-1"), ["--workers"]),
        (("--mode", "cfxyz"), ["--mode", "cffa"]),
        (("--config", "nowhere.yaml"), ["nowhere.yaml", "configs"]),
        (("--resume", "nowhere.pth"), ["nowhere.pth", "--resume"]),
        (("--resume",), ["latest.pth", "--name"]),
        (("--pretrained", "nowhere.pth"), ["nowhere.pth", "check the path"]),
        (("--val_data", "nowhere"), ["nowhere", "--val_data"]),
    ],
)
def test_unusable_training_arguments(
    generated_root, tmp_path, monkeypatch, capsys, arguments, words
):
    # If one of these arguments were accepted, the run would end here without training.
    monkeypatch.setattr(Engine, "fit", lambda self: None)
    given = ("--data", generated_root, "--save", tmp_path / "save")
    assert train(monkeypatch, *given, *arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_weights_of_another_architecture(generated_root, tmp_path, monkeypatch, capsys):
    other = save_untrained(
        tmp_path / "other.pth", ModelSettings(widths=(8, 8, 8), descriptor_dim=8)
    )
    # The checkpoint holds the weights of another network and no training run to resume.
    given = ("--data", generated_root, "--save", tmp_path / "save")
    for option, words in (
        ("--resume", ["lacks config", "train"]),
        ("--pretrained", ["do not fit this architecture", "config"]),
    ):
        assert train(monkeypatch, *given, option, other) == 2
        message = capsys.readouterr().err
        assert "other.pth" in message and all(word in message for word in words), message


def test_a_finished_run_is_not_overwritten(generated_root, tmp_path, monkeypatch, capsys):
    kept = save_untrained(tmp_path / "save" / "cffa" / "mine" / "latest.pth").read_bytes()
    given = ("--data", generated_root, "--save", tmp_path / "save", "--name", "mine")
    assert train(monkeypatch, *given) == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "save" / "cffa" / "mine" / "latest.pth").read_bytes() == kept


# --- the other scripts ---


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--weights", "nowhere.pth"), ["nowhere.pth", "train first"]),
        (("--img_size", "3"), ["--img_size 3", "64"]),
        (("--real", "nowhere"), ["nowhere", "--real"]),
        (("--scales", "0"), ["--scales"]),
        (("--generated_mode", "cffa", "cfxyz"), ["cfxyz", "cfocta"]),
        (("--split", "nowhere.yaml"), ["nowhere.yaml", "split.yaml"]),
    ],
)
def test_unusable_evaluation_arguments(
    untrained_weights, generated_root, tmp_path, monkeypatch, capsys, arguments, words
):
    given = ("--generated", generated_root, "--weights", untrained_weights)
    given += ("--device", "cpu", "--out", tmp_path / "out")
    assert run_main(evaluate, monkeypatch, *given, *arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_foreign_weights_are_refused_by_register(tmp_path, monkeypatch, capsys):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 not really")
    arguments = ("a.png", "b.png", "--out", tmp_path / "out", "--weights", tmp_path / "weights.pth")
    assert run_main(register, monkeypatch, *arguments) == 2
    assert "weights.pth" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, arguments",
    [
        ("train_multimodal_e2e.py", ("--data", "nowhere", "--device", "cpu")),
        ("register.py", ("--pairs", "nowhere.csv", "--out", "out")),
        ("evaluate.py", ("--real", "nowhere", "--out", "out", "--weights", "nowhere.pth")),
    ],
)
def test_scripts_print_one_error_line_and_exit_with_code_2(tmp_path, script, arguments):
    if script.startswith("train"):
        arguments = ("--config", str(LITE), "--save", str(tmp_path / "save"), *arguments)
    done = subprocess.run(
        [sys.executable, str(PROJECT / script), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "nowhere" in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


def test_a_broken_split_manifest_is_named(tmp_path):
    broken = tmp_path / "split.yaml"
    broken.write_text("train: [1, 2\nval: {")
    with pytest.raises(InputError, match="split.yaml.*YAML"):
        read_manifest(broken)
