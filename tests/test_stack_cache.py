"""Decoded samples on disk: the same as decoded anew, bounded, and safe with several processes."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import truncate

from dataset import stack_cache
from dataset.samples import Sample, discover_samples, load_sample
from dataset.stack_cache import HEADER_BYTES, StackCache, default_folder
from dataset.teaching_samples import IDENTITY, TeachingSample
from geometry.transforms import MatrixTransform
from utils.errors import InputError
from utils.image_files import read_gray, write_image

LONG_SIDE, SIGMA_PX = 96, 2.0
ENTRY_BYTES = HEADER_BYTES + 6 * LONG_SIDE**2


@pytest.fixture
def samples(tiny_data: Path, tmp_path: Path) -> list[Sample]:
    """Three samples whose files may be changed."""
    for name in ("1_A", "2_A", "3_A"):
        shutil.copytree(tiny_data / name, tmp_path / "set" / name)
    return discover_samples(tmp_path / "set", ["cffa"])[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the samples that are decoded, in order."""
    keys: list[str] = []
    decode = stack_cache._decode

    def counted(source, *sizes):
        keys.append(source.key)
        return decode(source, *sizes)

    monkeypatch.setattr(stack_cache, "_decode", counted)
    return keys


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def make(folder: Path, max_gb: float = 1.0, memory_mb: int = 0) -> StackCache:
    return StackCache(max_gb, memory_mb, folder)


def test_stacks_are_those_of_the_files_and_are_decoded_once(samples, tmp_path, decoded):
    for _ in range(2):  # the second cache stands for another process or run
        cache = make(tmp_path / "cache")
        for sample in samples:
            loaded = cache.load(sample, LONG_SIDE, SIGMA_PX)
            assert torch.equal(loaded.stack, load_sample(sample, LONG_SIDE, SIGMA_PX))
            assert loaded.tolerance_px == 0
    assert decoded == [sample.key for sample in samples]
    assert [path.stat().st_size for path in entries(tmp_path / "cache")] == 3 * [ENTRY_BYTES]


def test_other_sizes_and_modes_have_entries_of_their_own(samples, tmp_path, decoded):
    cache = make(tmp_path / "cache")
    for long_side, sigma in ((96, 2.0), (64, 2.0), (96, 1.5)):
        stack = cache.load(samples[0], long_side, sigma).stack
        assert torch.equal(stack, load_sample(samples[0], long_side, sigma))
    assert len(decoded) == len(entries(tmp_path / "cache")) == 3


def test_changed_files_and_changed_code_are_decoded_again(samples, tmp_path, decoded, monkeypatch):
    cache = make(tmp_path / "cache")
    sample = replace(samples[0], n_bytes=None)
    first = cache.load(sample, LONG_SIDE, SIGMA_PX).stack.clone()
    write_image(sample.fixed, 1.0 - read_gray(sample.fixed))
    second = cache.load(sample, LONG_SIDE, SIGMA_PX).stack
    assert not torch.equal(first, second)
    assert torch.equal(second, load_sample(sample, LONG_SIDE, SIGMA_PX))
    monkeypatch.setattr(stack_cache, "code_fingerprint", lambda: "another version")
    cache.load(sample, LONG_SIDE, SIGMA_PX)
    assert len(decoded) == 3
    assert len(entries(tmp_path / "cache")) == 1, "what is out of date is replaced"


def test_the_fingerprint_names_existing_code():
    root = Path(stack_cache.__file__).parents[1]
    assert all((root / name).is_file() for name in stack_cache.SOURCES)
    assert len(stack_cache.code_fingerprint()) == 64


def test_a_file_that_changed_during_the_run_is_an_error_as_without_cache(samples, tmp_path):
    cache = make(tmp_path / "cache")
    cache.load(samples[0], LONG_SIDE, SIGMA_PX)
    with open(samples[0].fixed, "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="changed since the run began"):
        cache.load(samples[0], LONG_SIDE, SIGMA_PX)
    samples[1].moving.unlink()
    with pytest.raises(InputError, match="no such image file"):
        cache.load(samples[1], LONG_SIDE, SIGMA_PX)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "not json"])
def test_a_damaged_entry_is_made_again_with_a_note(samples, tmp_path, decoded, capsys, damage):
    make(tmp_path / "cache").load(samples[0], LONG_SIDE, SIGMA_PX)
    (path,) = entries(tmp_path / "cache")
    whole = path.read_bytes()
    if damage == "truncated":
        truncate(path, 0.5)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
                "not json": b"x" * len(whole),
            }[damage]
        )
    cache = make(tmp_path / "cache")
    for _ in range(2):
        stack = cache.load(samples[0], LONG_SIDE, SIGMA_PX).stack
        assert torch.equal(stack, load_sample(samples[0], LONG_SIDE, SIGMA_PX))
    assert len(decoded) == 2 and path.read_bytes() == whole
    assert capsys.readouterr().err.count(f"{path}: damaged") == 1


def test_a_full_disk_is_said_once_and_the_run_goes_on(
    samples, tmp_path, decoded, monkeypatch, capsys
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - 2**20, 2**20)
    )
    cache = make(tmp_path / "cache")
    for sample in samples:
        stack = cache.load(sample, LONG_SIDE, SIGMA_PX).stack
        assert torch.equal(stack, load_sample(sample, LONG_SIDE, SIGMA_PX))
    message = capsys.readouterr().err
    assert message.count("note:") == 1 and "data.cache_gb" in message and "0.0 GB free" in message
    assert entries(tmp_path / "cache") == [] and len(decoded) == 3


def test_a_folder_that_cannot_be_made_is_said_once(samples, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    cache = make(tmp_path / "file" / "cache")
    for sample in samples[:2]:
        cache.load(sample, LONG_SIDE, SIGMA_PX)
    assert capsys.readouterr().err.count("note:") == 1


def test_the_folder_is_bounded_and_old_entries_leave_first(samples, tmp_path, decoded, capsys):
    two = 2.5 * ENTRY_BYTES / 2**30
    first = make(tmp_path / "cache", two)
    for sample in samples:
        first.load(sample, LONG_SIDE, SIGMA_PX)
    assert len(entries(tmp_path / "cache")) == 2, "what this run uses does not leave"
    assert "Raise data.cache_gb" in capsys.readouterr().err
    kept = entries(tmp_path / "cache")
    for age, path in enumerate(kept, start=1):
        os.utime(path, (1e9 - age, 1e9 - age))
    later = make(tmp_path / "cache", two)
    later.load(samples[2], LONG_SIDE, SIGMA_PX)
    assert kept[1] not in entries(tmp_path / "cache") and kept[0] in entries(tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2 and capsys.readouterr().err == ""


def test_without_a_folder_samples_stay_in_bounded_memory(samples, decoded):
    cache = StackCache(0, memory_mb=1)
    cache.memory_bytes = int(2.5 * 6 * LONG_SIDE**2)
    for number in (0, 1, 0, 2, 0, 1):  # 2 pushes out 1, the least recently used
        cache.load(samples[number], LONG_SIDE, SIGMA_PX)
    assert decoded == [samples[number].key for number in (0, 1, 2, 1)]


def _load_all(arguments: tuple[list[Sample], Path]) -> int:
    samples, folder = arguments
    cache = make(folder)
    return sum(int(cache.load(each, LONG_SIDE, SIGMA_PX).stack.sum()) for each in samples)


@pytest.mark.slow
def test_several_processes_build_the_same_entries(samples, tmp_path):
    work = 4 * [(samples, tmp_path / "cache")]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        sums = set(pool.map(_load_all, work))
    assert sums == {sum(int(load_sample(s, LONG_SIDE, SIGMA_PX).sum()) for s in samples)}
    assert [path.suffix for path in entries(tmp_path / "cache")] == 3 * [".stack"]


def test_a_real_pair_is_kept_with_its_tolerance_until_its_transform_changes(
    samples, tmp_path, decoded, monkeypatch
):
    pair = TeachingSample(
        "pair", "eye", "root", "landmarks", samples[0].fixed, samples[0].moving, IDENTITY, 3.0
    )
    other = replace(pair, transform=MatrixTransform(np.diag([0.9, 0.9, 1.0]), "affine"))
    cache = make(tmp_path / "cache")
    for _ in range(2):
        loaded = cache.load(pair, 48, SIGMA_PX)
        assert torch.equal(loaded.stack, pair.load(48, SIGMA_PX))
        assert loaded.tolerance_px == pytest.approx(1.5) == pair.tolerance_px(48)
    assert len(decoded) == 1
    assert torch.equal(cache.load(other, 48, SIGMA_PX).stack, other.load(48, SIGMA_PX))
    assert len(decoded) == 2 and len(entries(tmp_path / "cache")) == 1
    monkeypatch.setattr("dataset.teaching_samples.read_gray", None)
    assert pair.tolerance_px(48) == 1.5, "without decoding the fixed image again"


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "retinal-registration" / "stacks"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder().is_relative_to(tmp_path / "home" / ".cache")
