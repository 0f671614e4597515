"""Data sets of tens of thousands of samples: nothing may take time that grows with the square."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.check import Findings
from dataset.samples import Sample, discover_samples
from dataset.split import split_by_eye
from training.batches import count_workers
from training.data import ViewDraw, make_views
from training.mixture import mix
from training.superretina_step import SuperRetinaConfig

N_SAMPLES = 30_000
LIMIT_SECONDS = 20.0  # linear time: below 1 s on an idle machine; quadratic: minutes


@pytest.mark.slow
def test_splitting_and_mixing_take_linear_time():
    path = Path("file.png")
    samples = [Sample(f"cffa_{n}_A", str(n), "cffa", path, path, path, 1) for n in range(N_SAMPLES)]
    config = SuperRetinaConfig()
    draw = ViewDraw(config.data, 0, 2.0)
    start = time.process_time()
    split = split_by_eye([sample.eye for sample in samples], (0.12, 0.12), 0)
    train, val = make_views(samples, split, config, draw)
    mixture = mix([("a", "cffa")] * len(train), ["a"], ["cffa"], [1.0], [])
    findings = Findings()
    for sample in samples:
        findings.add(f"{sample.key}: a problem")
    assert time.process_time() - start < LIMIT_SECONDS
    assert len(train) + len(val) + len(split["test"]) == N_SAMPLES == len(findings.problems)
    assert len(mixture.groups[0]) == len(train)


@pytest.mark.slow
def test_many_folders_are_found_in_seconds(tmp_path):
    for number in range(2000):
        folder = tmp_path / f"{number}_A"
        folder.mkdir()
        for name in ("cf", "fa", "seg"):
            (folder / f"{number}_A_{name}.png").touch()
    start = time.process_time()
    samples, lacking = discover_samples(tmp_path, ["cffa"])
    # 0.1 s on an idle machine: 50,000 folders in 2.5 s.
    assert time.process_time() - start < 1.0
    assert len(samples) == 2000 and lacking == []


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "expected"),
    [(1, 1, None, 1), (2, 1, None, 1), (8, 1, None, 7), (8, 2, None, 3), (96, 1, None, 16)]
    + [(8, 1, 0, 0), (8, 1, 3, 3)],
)
def test_workers_are_all_cores_but_one(monkeypatch, cores, processes, asked, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert count_workers(asked, SimpleNamespace(world_size=processes)) == expected
