"""register.py with tables of pairs: failed rows, ids, paths, wrong usage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import read_table, run_main
from openpyxl import Workbook
from register_runs import COLUMNS, MATRIX, RunRegister, register_runner, write_table

import register
from utils.image_files import read_color, write_image


@pytest.fixture
def cf(generated_root) -> Path:
    return generated_root / "1_A" / "1_A_cf.png"


@pytest.fixture
def run_register(untrained_weights, monkeypatch, tmp_path) -> RunRegister:
    """Runs register.py into ``tmp_path / "out"``."""
    return register_runner(tmp_path / "out", untrained_weights, monkeypatch)


def test_one_bad_row_does_not_stop_the_batch(run_register, cf, tmp_path):
    (tmp_path / "cut.png").write_bytes(cf.read_bytes()[:3000])
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 64), np.uint8))
    cases = [
        ("first", cf, cf, ""),
        ("cut", cf, tmp_path / "cut.png", "cut.png"),
        ("gone", tmp_path / "gone.png", cf, "gone.png"),
        ("../x", cf, cf, "plain name"),
        ("first", cf, cf, "twice"),
        ("a/b", cf, cf, "plain name"),
        (".hidden", cf, cf, "plain name"),
        ("folder", cf.parent, cf, str(cf.parent.name)),
        ("black", tmp_path / "black.png", cf, "black"),
        ("empty", "", cf, "image"),
        ("last", cf, cf, ""),
    ]
    table = write_table(
        tmp_path / "pairs.csv", [{"id": a, "fixed": b, "moving": c} for a, b, c, _ in cases]
    )
    code, rows = run_register("--pairs", table)
    assert code == 0 and [row["id"] for row in rows] == [case[0] for case in cases]
    for row, (_, _, _, reason) in zip(rows, cases, strict=True):
        assert row["status"] == ("failed" if reason else "ok"), row
        assert reason in row["reason"]
        assert all((row[name] == "") == bool(reason) for name in MATRIX)
    assert (
        not (tmp_path / "x").exists() and (tmp_path / "out" / "last" / "registered.png").is_file()
    )


@pytest.mark.parametrize(
    "name", ["results.csv", "name with blanks", "眼底_1", "x" * 150, "眼" * 140]
)
def test_unusual_ids_do_not_stop_the_batch(run_register, cf, tmp_path, name):
    table = write_table(
        tmp_path / "pairs.csv",
        [{"id": name, "fixed": cf, "moving": cf}, {"id": "b", "fixed": cf, "moving": cf}],
    )
    code, rows = run_register("--pairs", table)
    assert code == 0 and [row["id"] for row in rows] == [name, "b"] and rows[1]["status"] == "ok"
    assert rows[0]["status"] == "ok" or rows[0]["reason"]


def test_files_in_the_way_and_impossible_paths_do_not_stop_the_batch(run_register, cf, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "taken").write_text("a file where the folder should be", encoding="utf-8")
    table = write_table(
        tmp_path / "pairs.csv",
        [
            {"id": "taken", "fixed": cf, "moving": cf},
            {"id": "long", "fixed": "x" * 5000, "moving": cf},
            {"id": "good", "fixed": cf, "moving": cf},
        ],
    )
    code, rows = run_register("--pairs", table)
    assert code == 0 and [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert (
        "taken" in rows[0]["reason"]
        and rows[1]["reason"]
        and all(rows[0][name] == "" for name in MATRIX)
    )


def test_an_output_folder_that_is_a_file_is_refused(
    cf, untrained_weights, tmp_path, monkeypatch, capsys
):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    arguments = ("--out", tmp_path / "out", "--weights", untrained_weights, "--device", "cpu")
    assert run_main(register, monkeypatch, cf, cf, *arguments) == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_further_columns_are_kept_and_paths_may_lie_beside_the_table(
    run_register, generated_root, tmp_path
):
    write_image(
        tmp_path / "tables" / "fixed.png", read_color(generated_root / "2_A" / "2_A_cf.png")
    )
    table = write_table(
        tmp_path / "tables" / "pairs.csv",
        [
            {
                "eye": "OD, right",
                "id": "one",
                "fixed": "fixed.png",
                "note": "",
                "moving": "fixed.png",
            },
            {
                "eye": "OS",
                "id": "two",
                "fixed": "nowhere.png",
                "note": "lost",
                "moving": "fixed.png",
            },
        ],
    )
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    code, rows = run_register("--pairs", table)
    assert code == 0 and list(rows[0]) == [*COLUMNS, "eye", "note"]
    assert [row["eye"] for row in rows] == ["OD, right", "OS"] and rows[1]["note"] == "lost"
    assert [row["status"] for row in rows] == ["ok", "failed"]


def test_a_table_without_rows(run_register, tmp_path):
    (tmp_path / "pairs.csv").write_text("id,fixed,moving\n", encoding="utf-8")
    code, rows = run_register("--pairs", tmp_path / "pairs.csv")
    assert code == 0 and rows == []
    assert (tmp_path / "out" / "results.csv").read_text(encoding="utf-8").strip().split(
        ","
    ) == COLUMNS


def test_wrong_usage_is_exit_code_2(run_register, cf, tmp_path):
    (tmp_path / "pairs.csv").write_text("id,fixed,other\na,b,c\n", encoding="utf-8")
    for arguments in (
        (),
        (cf,),
        (cf, cf, "--pairs", "a.csv"),
        ("--pairs", tmp_path / "nowhere.csv"),
        ("--pairs", tmp_path / "pairs.csv"),
        (cf, cf, "--transform", "cubic"),
        (cf, cf, "--img_size", "9"),
    ):
        assert run_register(*arguments) == (2, []), arguments


@pytest.mark.slow
def test_from_the_shell(cf, untrained_weights, tmp_path):
    project = Path(register.__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            str(project / "register.py"),
            str(cf),
            str(cf),
            "--out",
            "out",
            "--weights",
            str(untrained_weights),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "1 of 1 pairs registered" in done.stdout
    assert read_table(tmp_path / "out" / "results.csv")[0]["status"] == "ok"


def test_two_patients_with_equal_file_names_keep_their_own_results(run_register, cf, tmp_path):
    """One after the other, each from its own folder."""
    for name in ("P1", "P2"):
        write_image(tmp_path / name / "cf.png", read_color(cf))
    for name, n_rows in (("P1", 1), ("P2", 2), ("P1", 2)):
        image = tmp_path / name / "cf.png"
        code, rows = run_register(image, image)
        assert code == 0 and len(rows) == n_rows
    assert {row["id"]: row["fixed"] for row in rows} == {
        "cf_cf": str(tmp_path / "P1" / "cf.png"),
        "P2_cf_cf": str(tmp_path / "P2" / "cf.png"),
    }


def test_patterns_show_the_pairing_and_register_it(run_register, cf, tmp_path, capsys):
    for name in ("P1", "P2"):
        for kind in ("cf_1", "fa_1"):
            write_image(tmp_path / "in" / name / f"{kind}.png", read_color(cf))
    patterns = ("--fixed", tmp_path / "in/P*/cf*.png", "--moving", tmp_path / "in/P*/fa*.png")
    assert run_register(*patterns, "--dry_run") == (0, [])
    assert "P2/cf_1.png <- " in capsys.readouterr().out and not (tmp_path / "out").exists()
    code, rows = run_register(*patterns)
    assert code == 0 and [row["id"] for row in rows] == ["P1_cf_1_fa_1", "P2_cf_1_fa_1"]
    assert "2 pairs (id: fixed <- moving)" in capsys.readouterr().out


def test_an_excel_table_without_ids(run_register, cf, tmp_path):
    book = Workbook()
    for row in (["Fixed", "Moving", "Auge"], [str(cf), str(cf), "=1+1"], [str(cf), "no.png", "-"]):
        book.active.append(row)
    book.active["C2"].data_type = "s"
    book.save(tmp_path / "pairs.xlsx")
    code, rows = run_register("--pairs", tmp_path / "pairs.xlsx")
    assert code == 0 and [row["status"] for row in rows] == ["ok", "failed"]
    assert [row["id"] for row in rows] == ["1_A_cf_1_A_cf", "1_A_cf_no"]
    assert [row["Auge"] for row in rows] == ["'=1+1", "'-"]


def test_the_table_says_what_the_matrix_is(run_register, cf, monkeypatch):
    """For a curved transform h00 ... h22 are its affine part."""
    _, (row,) = run_register(cf, cf)
    assert row["transform"] == "affine" and row["matrix"] == "whole transform"
    assert float(row["agreement"]) > 0 and row["fixed"] == row["moving"] == str(cf)
    monkeypatch.setattr("batch.work.CURVED_KINDS", ("affine",))
    _, (row,) = run_register(cf, cf, "--overwrite")
    assert row["matrix"] == "affine part"
