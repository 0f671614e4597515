"""Pairs from patterns of file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch.pairing import describe_pairs, find_pairs
from utils.errors import InputError


def pairs_of(folder: Path, fixed: str, moving: str, **options: bool) -> list[tuple]:
    rows = find_pairs(f"{folder}/{fixed}", f"{folder}/{moving}", **options)
    return [(*(str(Path(p).relative_to(folder)) for p in row[1:3]), row.extra) for row in rows]


@pytest.fixture
def files(tmp_path):
    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def test_the_files_of_a_folder_belong_together(files):
    folder = files("P1/cf.png", "P1/fa1.png", "P1/fa2.png", "P2/cf_b.png", "P2/fa.png", "P2/x.png")
    assert pairs_of(folder, "P*/cf*.png", "P*/fa*.png") == [
        ("P1/cf.png", "P1/fa1.png", {}),
        ("P1/cf.png", "P1/fa2.png", {}),
        ("P2/cf_b.png", "P2/fa.png", {}),
    ]
    assert len(pairs_of(folder, "**/cf*.png", "**/fa*.png")) == 3


def test_named_groups_pair_across_folders_and_become_columns(files):
    folder = files("cf/7_OD_a.png", "cf/7_OS_b.png", "fa/7_OS.png", "fa/7_OD.png")
    assert pairs_of(folder, "cf/{eye}_?.png", "fa/{eye}.png") == [
        ("cf/7_OD_a.png", "fa/7_OD.png", {"eye": "7_OD"}),
        ("cf/7_OS_b.png", "fa/7_OS.png", {"eye": "7_OS"}),
    ]
    assert pairs_of(folder, "cf/{n}_{eye}_[!a].png", "fa/{n}_{eye}.png", skip_unpaired=True) == [
        ("cf/7_OS_b.png", "fa/7_OS.png", {"n": "7", "eye": "OS"})
    ]


def test_the_group_id_names_the_pairs(files):
    folder = files("cf_1.png", "fa_1.png", "cf_2.png", "fa_2.png", "fa_2b.png")
    rows = find_pairs(f"{folder}/cf_{{id}}.png", f"{folder}/fa_{{id}}*.png", skip_unpaired=True)
    assert [(row.id, Path(row.moving).name, row.extra) for row in rows] == [
        ("1", "fa_1.png", {}),
        ("", "fa_2.png", {}),
        ("", "fa_2b.png", {}),
    ]


def test_a_group_that_is_repeated_has_one_value(files):
    folder = files("P1/P1_cf.png", "P1/P2_cf.png", "P1/P1_fa.png")
    found = pairs_of(folder, "{p}/{p}_cf.png", "{p}/{p}_fa.png")
    assert found == [("P1/P1_cf.png", "P1/P1_fa.png", {"p": "P1"})]


@pytest.mark.parametrize(
    ("names", "fixed", "moving", "said"),
    [
        (["P1/cf.png"], "P*/cf*.png", "P*/fa*.png", "--moving .*no such files"),
        (["P1/cf.png", "P1/fa.png", "P2/cf.png"], "P*/cf*", "P*/fa*", "P2/cf.png: without a"),
        (["P1/cf.png", "P1/fa.png", "P2/fa.png"], "P*/cf*", "P*/fa*", "P2/fa.png: without a"),
        (["P1/cf1.png", "P1/cf2.png", "P1/fa.png"], "P*/cf*", "P*/fa*", "2 fixed images for"),
        (["a/1.png", "b/1.png"], "a/*.png", "b/*.png", "without a partner.*{eye}"),
        (["a/1.png", "b/1.png"], "a/{n}.png", "b/*.png", "the same groups"),
        (["a/1.png", "b/1.png"], "a/{status}.png", "b/{status}.png", "{status}: a column"),
        (["a/1.png", "a/2.png"], "a/1.png", "a/*1.png", "a/1.png: without a partner"),
    ],
)
def test_what_cannot_be_paired_is_named_with_a_remedy(files, names, fixed, moving, said):
    folder = files(*names)
    with pytest.raises(InputError, match=said):
        find_pairs(f"{folder}/{fixed}", f"{folder}/{moving}")


def test_unpaired_files_are_left_out_on_request(files):
    folder = files("P1/cf.png", "P1/fa.png", "P2/cf.png", "P3/fa.png")
    found = pairs_of(folder, "P*/cf*", "P*/fa*", skip_unpaired=True)
    assert found == [("P1/cf.png", "P1/fa.png", {})]


def test_the_pairing_is_described(files, monkeypatch):
    folder = files(*(f"P{i}/{name}.png" for i in range(4) for name in ("cf", "fa")))
    monkeypatch.chdir(folder)
    text = describe_pairs(find_pairs("P*/cf.png", "P*/fa.png"), n_shown=2)
    assert text.splitlines() == [
        "4 pairs (id: fixed <- moving)",
        "  P0/cf.png <- P0/fa.png",
        "  P1/cf.png <- P1/fa.png",
        "  ... and 2 more",
    ]
