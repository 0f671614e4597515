"""Runs of register.py in the tests, and the tables that it reads."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import read_table, run_main

import register

COLUMNS = (
    "id,status,reason,confidence,agreement,n_matches,n_inliers,seconds,transform,transform_reason,"
    "matrix,h00,h01,h02,h10,h11,h12,h20,h21,h22,fixed,moving"
).split(",")
MATRIX = [f"h{row}{column}" for row in range(3) for column in range(3)]
RunRegister = Callable[..., tuple[int, list[dict[str, str]]]]


def register_runner(out: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> RunRegister:
    """A function that runs register.py and returns its exit code and the rows of results.csv.

    Args:
        out: folder of the results.
        weights: checkpoint.
        monkeypatch: of the test.
    """

    def run(*arguments: object) -> tuple[int, list[dict[str, str]]]:
        options = ("--out", out, "--weights", weights, "--device", "cpu")
        if "--workers" not in arguments:
            options += ("--workers", 1)
        code = run_main(register, monkeypatch, *arguments, *options)
        return code, read_table(out / "results.csv") if (out / "results.csv").is_file() else []

    return run


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write a CSV table whose columns are the keys of the first row; returns its path."""
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
