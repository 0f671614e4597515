"""The benchmark of the data path runs, and says how many pairs a second come."""

from __future__ import annotations

import re

import pytest
from helpers import run_main

import benchmarks.data_path


@pytest.mark.slow
def test_rates_of_all_rows(tiny_data, monkeypatch, capsys):
    options = "--samples 4 --img_size 64 --workers 0 --batch_size 2 --epochs 2 --device cpu"
    arguments = ["--data", tiny_data, *options.split()]
    assert run_main(benchmarks.data_path, monkeypatch, *arguments) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.partition(",")[0] for row in rows] == list(benchmarks.data_path.ROWS)
    rates = [[float(text) for text in re.findall(r"\d+\.\d+", row)] for row in rows]
    assert all(first > 0 and later > 0 for first, later, _ in rates)
    assert run_main(benchmarks.data_path, monkeypatch, *arguments, "--epochs", 1) != 0
