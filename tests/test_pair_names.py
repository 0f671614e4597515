"""Ids of pairs without one, and the table of results as a file."""

from __future__ import annotations

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registration.pair_names import name_pairs
from registration.pair_tables import (
    RESULT_COLUMNS,
    PairToRegister,
    read_pairs,
    read_results,
    with_formula,
    without_formula,
    write_results,
)
from utils.names import is_plain_name


def names_of(*paths: tuple[str, str], known=None, taken=()) -> list[str]:
    rows = [PairToRegister("", fixed, moving, {}) for fixed, moving in paths]
    return [row.id for row in name_pairs(rows, known or {}, lambda name, _: name not in taken)]


def test_different_file_names_are_enough():
    assert names_of(("/a/cf.png", "/a/fa.png"), ("/b/x.png", "/c/y z.png")) == ["cf_fa", "x_y_z"]


def test_as_much_of_the_path_as_tells_the_pairs_apart():
    assert names_of(
        ("/d/P1/v1/cf.png", "/d/P1/v1/fa.png"),
        ("/d/P2/v1/cf.png", "/d/P2/v1/fa.png"),
        ("/d/P2/v2/cf.png", "/d/P2/v2/fa.png"),
        ("/d/P3/oct.png", "/d/P3/fa.png"),
    ) == ["P1_v1_cf_fa", "P2_v1_cf_fa", "v2_cf_fa", "oct_fa"]


def test_images_in_different_folders_are_both_named():
    assert names_of(("/cf/P1.png", "/fa/P1.png"), ("/cf/P1.png", "/octa/P1.png")) == [
        "cf_P1_fa_P1",
        "cf_P1_octa_P1",
    ]


def test_a_known_pair_keeps_its_id_and_a_taken_folder_is_avoided():
    first, second = ("/P1/cf.png", "/P1/fa.png"), ("/P2/cf.png", "/P2/fa.png")
    assert names_of(first, second, known={first: "cf_fa"}) == ["cf_fa", "P2_cf_fa"]
    assert names_of(second, taken=("cf_fa",)) == ["P2_cf_fa"]


def test_paths_that_differ_in_forbidden_characters_only():
    names = names_of(("/a b/c.png", "/a b/d.png"), ("/a_b/c.png", "/a_b/d.png"))
    assert len(set(names)) == 2


PATHS = ["/a b/c", "/a_b/c", "a.b", "眼" * 90, "x" * 290, "..", "~", "\0=", "/A/c", "é/c", "con"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(*[st.sampled_from(PATHS)] * 2), unique=True, max_size=8))
def test_names_are_plain_and_unique(paths):
    names = names_of(*paths)
    assert all(is_plain_name(name) for name in names)
    assert len({name.casefold() for name in names}) == len(paths)


def test_ids_are_optional_and_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").write_text("Fixed;moving;Eye\na.png;b.png;OD\n", encoding="utf-8")
    (row,) = read_pairs("pairs.csv")
    assert row == ("", str(tmp_path / "a.png"), str(tmp_path / "b.png"), {"Eye": "OD"})


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "'=1"])
def test_no_cell_becomes_a_formula(tmp_path, cell):
    path = tmp_path / "results.csv"
    write_results(path, [{"id": "a", "h00": "-0.5", "reason": cell, cell: -1.5}], [cell])
    with open(path, encoding="utf-8", newline="") as handle:
        cells = [text for row in csv.reader(handle) for text in row]
    starts = [text for text in cells if text[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert starts == ["-0.5", "-1.5"]
    (row,) = read_results(path)
    assert list(row) == [*RESULT_COLUMNS, cell]
    assert row["reason"] == cell and row["h00"] == "-0.5" and row[cell] == "-1.5"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=6))
def test_cells_are_read_back_as_they_were(cell):
    assert with_formula(str(without_formula(cell))) == cell
