"""The study of learning from real images: folds, table of pairs, table of results."""

from __future__ import annotations

import argparse
import math

import pytest

from benchmarks import real_training
from benchmarks.real_training_table import table
from dataset.real_items import find_real_items


def test_every_eye_is_tested_once_and_never_trained_on():
    eyes = {f"e{number}" for number in range(10)}
    folds = [real_training.fold_of_eyes(eyes, fold, 3, seed=1) for fold in range(3)]
    assert sorted(eye for fold in folds for eye in fold["test"]) == sorted(eyes)
    for fold in folds:
        assert set(fold["train"]) | set(fold["test"]) == eyes
        assert not set(fold["train"]) & set(fold["test"])


def test_the_table_of_pairs_is_read_by_the_training(numbered_root, tmp_path):
    found = real_training.find_real([numbered_root[0].parent])
    assert len(found) == 3 and len({files.eye for files in found.values()}) == 2
    items = find_real_items(real_training.write_table(tmp_path / "pairs.csv", found))
    assert {item.key for item in items} == {f"pairs_{name}" for name in found}
    assert all(item.landmarks for item in items)
    args = argparse.Namespace(folds=2)
    eyes = [real_training.eyes_of_fold(found, fold, 0, args) for fold in (0, 1)]
    assert sorted(map(len, eyes)) == [1, 2], "pairs of one eye are in one fold"


def test_gains_are_measured_on_the_same_pairs():
    infinite = math.inf
    results = {
        ("zero-shot | 0", 0): {"bare 0": [9.0, 1.0, infinite], "bare cffa": [1.0, 9.0]},
        ("zero-shot | 0", 1): {"bare 0": [9.0, 1.0, 7.0], "bare cffa": [1.0, 9.0]},
        ("self | 0", 0): {"bare 0": [1.0, 1.0, 1.0], "bare cffa": [9.0, 9.0]},
    }

    def runs_of(way: str) -> list:
        return [((f"{way} | 0", seed), ["a", "a", "b"]) for seed in (0, 1)]

    columns = {"real": ["bare 0"], "generated": ["bare cffa"]}
    lines = table(results, ["zero-shot", "self", "all"], runs_of, columns).splitlines()
    assert lines[2] == "| zero-shot | 2 | 33 | 50 |"
    # Of the three pairs of seed 0: +1, 0 and +1; eye a gains 1 of 2, eye b 1 of 1.
    assert lines[3].startswith("| self | 1 | 100 (+67, +50 to +100) | 0 (−50, ")
    assert lines[4] == "| all | 0 | – | – |"


def test_unknown_ways_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["real_training", "--ways", "magic"])
    with pytest.raises(SystemExit):
        real_training.main()
    assert "magic" in capsys.readouterr().err
