"""``python -m dataset.check`` lists every problem of a data set, and none of a good one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import make_pair, run_main, write_numbered_pair, write_points

import dataset.check
from dataset.check import check
from utils.errors import InputError
from utils.image_files import read_gray, read_mask, write_image


def run_check(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    code = run_main(dataset.check, monkeypatch, *arguments)
    return code, capsys.readouterr().out


def assert_each_is_named(problems: list[str], expected: dict[str, str]) -> None:
    """Exactly one problem for each file, with words of its remedy."""
    for name, words in expected.items():
        found = [line for line in problems if name in line and words in line]
        assert len(found) == 1, (name, words, problems)
    assert len(problems) == len(expected), problems


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_good_data_of_every_layout(generated_root, numbered_root, cfocta_root, monkeypatch, capsys):
    for root, n_checked in ((generated_root, 12 * 4), (numbered_root[0], 3), (cfocta_root[0], 2)):
        code, output = run_check(monkeypatch, capsys, root)
        assert code == 0 and f"{n_checked} samples checked, 0 problems, 0 notes" in output, output


def damage_generated(root: Path, file: Callable[[str, str], Path]) -> None:
    """Give each of the folders 1_A to 6_A one or two faults."""
    cut_off(file("1_A", "cf"))
    file("1_A", "oct").write_bytes(b"")
    write_image(file("2_A", "fa"), np.zeros((192, 192), np.uint8))
    write_image(file("2_A", "seg"), ~read_mask(file("2_A", "seg")))
    write_image(file("3_A", "oct"), read_gray(file("3_A", "oct"))[:-10])
    file("4_A", "octa").unlink()
    values = read_gray(file("5_A", "fa"))
    values[3, 4] = np.nan
    assert cv2.imwrite(str(root / "nan.tif"), values)
    (root / "nan.tif").rename(file("5_A", "fa"))
    shutil.copy(file("6_A", "cf"), file("6_A", "fa"))
    deep = (read_gray(file("6_A", "oct")) * 4095).astype(np.uint16)
    assert cv2.imwrite(str(file("6_A", "oct")), deep)
    (root / "notes").mkdir()


def test_every_problem_of_a_generated_set_at_once(generated_root, tmp_path, monkeypatch, capsys):
    root = tmp_path / "set"
    for eye in ("1_A", "2_A", "3_A", "4_A", "5_A", "6_A"):
        shutil.copytree(generated_root / eye, root / eye)

    def file(eye: str, suffix: str) -> Path:
        names = (f"{suffix}_512", suffix, f"{suffix}_gen")
        paths = (root / eye / f"{eye}_{name}.png" for name in names)
        return next(path for path in paths if path.exists())

    damage_generated(root, file)
    code, output = run_check(monkeypatch, capsys, root)
    assert code == 1
    lines = output.splitlines()
    problems = [line for line in lines if line.startswith("problem: ")]
    assert_each_is_named(
        problems,
        {
            file("1_A", "cf").name: "again",
            file("1_A", "oct").name: "empty",
            file("2_A", "fa").name: "black",
            "2_A_seg.png": "invert the mask",
            file("3_A", "oct").name: "resize",
            "4_A_octa_gen.png": "add the file",
            file("5_A", "fa").name: "NaN",
            file("6_A", "fa").name: "same picture",
        },
    )
    notes = [line for line in lines if line.startswith("note: ")]
    assert (
        len(notes) == 2
        and any("more than 8 bits" in line for line in notes)
        and any("ignored" in line for line in notes)
    )
    # With --mode, only files of that mode are checked.
    code, output = run_check(monkeypatch, capsys, root, "--mode", "cfocta")
    assert code == 1 and output.count("problem: ") == 1 and "4_A" in output


def test_too_few_eyes(generated_root, tmp_path):
    for visit in ("1_A", "1_B"):
        shutil.copytree(generated_root / visit, tmp_path / "set" / visit)
    assert_each_is_named(check(tmp_path / "set").problems, {str(tmp_path / "set"): "add eyes"})


def test_every_problem_of_real_pairs_at_once(generated_root, tmp_path, monkeypatch, capsys):
    root = tmp_path / "real"
    pair = make_pair(generated_root / "1_A", "cf", "fa_gen", 12.0, 0.9)
    folders = {
        number: write_numbered_pair(root, f"{number}_1", number, pair)
        for number in ("001", "002", "003", "004", "005")
    }
    cut_off(folders["001"] / "001_01.png")
    (folders["001"] / "001_02.txt").write_text("12 34\nx y\n", encoding="utf-8")
    (folders["002"] / "002_02.png").unlink()
    write_points(folders["003"] / "003_02.txt", pair[4][::-1])
    write_points(folders["004"] / "004_01.txt", pair[3][:2])
    write_points(folders["004"] / "004_02.txt", pair[4][:2])
    code, output = run_check(monkeypatch, capsys, root)
    assert code == 1
    assert_each_is_named(
        [line for line in output.splitlines() if line.startswith("problem: ")],
        {
            "001_01.png": "again",
            "001_02.txt: line 2": "not numbers",
            "002_02": "exactly one",
            "003_01.txt": "same point",
            "004_01.txt": "at least 3",
        },
    )


def test_every_problem_of_a_cf_octa_set_at_once(cfocta_root, tmp_path, monkeypatch, capsys):
    root = tmp_path / "set"
    shutil.copytree(cfocta_root[0], root)
    (root / "OCTA_ts" / "1OCTA.png").unlink()
    path = root / "Ground_Truth_Ts" / "10Fundus_OCTA_points.txt"
    path.write_text(path.read_text() + "1 2 3\n")
    code, output = run_check(monkeypatch, capsys, root)
    assert code == 1
    assert_each_is_named(
        [line for line in output.splitlines() if line.startswith("problem: ")],
        {"1Fundus_OCTA_points.txt: 0 images": "exactly one", "10Fundus": "4 finite numbers"},
    )


def test_a_folder_of_no_layout(tmp_path):
    with pytest.raises(InputError, match="nowhere.*path"):
        check(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="none of the layouts"):
        check(tmp_path)
