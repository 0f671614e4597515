"""Fuzz tests: damaged and random files give a result or an ``InputError``, within a deadline.

Hypothesis draws more than 800 cases per run, always the same ones. No other exception may pass.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from helpers import make_pair, run_main, write_numbered_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate
from batch.engine import InProcess, StopRequest
from batch.journal import Journal
from batch.ledger import Ledger
from batch.run import Batch
from batch.work import register_row
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.check import check
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from geometry.point_files import read_points
from registration.pair_names import name_pairs
from registration.pair_tables import PairToRegister, read_pairs, read_results, write_results
from registration.registrar import Registrar
from training.superretina_step import SuperRetinaConfig
from utils.checkpoint import read_checkpoint
from utils.config import build, read_config
from utils.errors import InputError
from utils.image_files import read_color, read_gray, read_mask, write_image


def cases(n: int):
    """Settings of a test with ``n`` cases.

    The cases of a test share a folder, so each case must write its files again.
    """
    return settings(
        max_examples=n,
        deadline=timedelta(seconds=60),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw, originals: list[bytes]) -> bytes:
    """Content of a file with up to three changes: bytes replaced, inserted, repeated, cut off."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 3))):
        # Half of the changes are in the header, because most errors of the readers come from it.
        place = draw(
            st.integers(0, min(80, max(0, len(content) - 1)))
            | st.integers(0, max(0, len(content) - 1))
        )
        kind = draw(st.sampled_from(("change", "cut", "insert", "repeat")))
        few = draw(st.binary(min_size=1, max_size=8))
        if kind == "cut":
            del content[place:]
        elif kind == "change":
            content[place : place + len(few)] = few
        elif kind == "insert":
            content[place:place] = few
        else:
            content[place:place] = content[:place][-200:]
    return bytes(content)


def image_files() -> list[bytes]:
    """Contents of small images in all formats, and of files that are no images."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 255, (24, 30), np.uint8)
    color = rng.integers(0, 255, (24, 30, 3), np.uint8)
    files = [
        cv2.imencode(suffix, image)[1].tobytes()
        for suffix in (".png", ".jpg", ".tif", ".bmp")
        for image in (gray, color)
    ]
    deep = [
        cv2.imencode(suffix, gray.astype(np.uint16) * 16)[1].tobytes()
        for suffix in (".png", ".tif")
    ]
    return [
        *files,
        *deep,
        cv2.imencode(".tif", gray.astype(np.float32))[1].tobytes(),
        b"",
        b"GIF89a",
        b"\x00" * 64,
    ]


@cases(250)
@given(content=damaged(image_files()), suffix=st.sampled_from((".png", ".jpg", ".tif", ".bmp", "")))
def test_images(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"image{suffix}"
    path.write_bytes(content)
    for read in (read_gray, read_color, read_mask):
        try:
            image = read(path)
        except InputError as error:
            assert path.name in str(error)
            continue
        assert image.shape[0] >= 16 and np.isfinite(image).all()


NUMBERS = st.one_of(
    st.floats(width=32).map(str),
    st.integers().map(str),
    st.sampled_from(("nan", "inf", "1e400", "", "x", "０")),
)


@cases(120)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
        st.lists(st.lists(NUMBERS, min_size=1, max_size=5).map(" ".join), max_size=8).map(
            lambda lines: "\n".join(lines).encode()
        ),
    ),
    columns=st.sampled_from((2, 4)),
)
def test_landmark_files(tmp_path_factory, content, columns):
    path = tmp_path_factory.getbasetemp() / "points.txt"
    path.write_bytes(content)
    try:
        points = read_points(path, columns)
    except InputError as error:
        assert "points.txt" in str(error)
    else:
        assert points.shape[1] == columns and np.isfinite(points).all()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from([*SuperRetinaConfig.__dataclass_fields__, "modle"])
INNER = st.sampled_from(
    "lr scale widths weights ranges pke img_size val_test_share accumulate".split()
)
CONFIGS = st.dictionaries(KEYS, st.dictionaries(INNER, VALUES, max_size=3) | VALUES, max_size=3)


@pytest.mark.slow
@cases(150)
@given(
    content=st.one_of(
        st.binary(max_size=120),
        st.text(max_size=120).map(lambda text: text.encode("utf-8", "replace")),
        CONFIGS.map(lambda content: yaml.safe_dump(content).encode()),
        st.integers(0, 3000).map(lambda depth: b"model: " + b"[" * depth + b"]" * depth),
    )
)
def test_configs(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    try:
        config = build(SuperRetinaConfig, read_config(path), str(path))
    except InputError as error:
        assert "fuzzed.yaml" in str(error)
    else:
        assert isinstance(config, SuperRetinaConfig)


@cases(80)
@given(data=st.data())
def test_checkpoints(tmp_path_factory, untrained_weights, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pth"
    path.write_bytes(data.draw(damaged([untrained_weights.read_bytes()])))
    try:
        content = read_checkpoint(path, ["model", "kind"])
    except InputError as error:
        assert "fuzzed.pth" in str(error)
    else:
        expected = read_checkpoint(untrained_weights)
        assert all(
            (content["model"][name] == tensor).all() for name, tensor in expected["model"].items()
        )


@pytest.fixture(scope="module")
def registrar(untrained_weights) -> Registrar:
    return Registrar(untrained_weights, device="cpu", img_size=64)


DTYPES = st.sampled_from(
    (np.uint8, np.uint16, np.int32, np.float32, np.float64, bool, np.complex64, object)
)


@pytest.mark.slow
@cases(60)
@given(
    shape=st.lists(st.integers(0, 90), max_size=4),
    dtype=DTYPES,
    seed=st.integers(0, 9),
    special=st.sampled_from((None, np.nan, np.inf, -1e30, 0)),
)
def test_arrays_given_to_register(registrar, shape, dtype, seed, special):
    # np.asarray: with an empty shape the draw is a scalar, which has no size once it is an object.
    image = np.asarray(np.random.default_rng(seed).random(shape) * 255).astype(dtype)
    if special is not None and image.size and dtype in (np.float32, np.float64):
        image.reshape(-1)[seed % image.size] = special
    good = np.random.default_rng(1).random((64, 72))
    for pair in ((image, good), (good, image)):
        try:
            result = registrar.register(*pair)
        except InputError as error:
            assert str(error)
        else:
            assert result.status in ("ok", "failed")
            assert (result.status == "ok") == (result.H_fix_to_mov is not None)


CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(("a", "A", "../../x", "/x", "..", "con", "good.png", "none.png", "\x00")),
)


class GivenWork(NamedTuple):
    """Registration with a registrar that exists already."""

    registrar: Registrar
    out: Path

    def open(self) -> Callable[[PairToRegister], dict]:
        return lambda row: register_row(row, self.registrar, self.out, [])


def register_all(rows: list[PairToRegister], registrar: Registrar, out: Path) -> list[dict]:
    """Rows of the table of results, after a batch in this process."""
    out.mkdir(parents=True)
    with Journal(out / "journal.jsonl") as journal:
        named = name_pairs(rows, {}, lambda name, paths: True)
        ledger = Ledger(journal, {}, out, named, "")
        Batch(ledger, InProcess(GivenWork(registrar, out), None), out).run(StopRequest())
        write_results(out / "results.csv", ledger.records(), ledger.extra_columns())
    return list(read_results(out / "results.csv"))


@cases(80)
@given(
    content=st.one_of(
        st.binary(max_size=150),
        st.lists(st.lists(CELLS, max_size=5).map(",".join), max_size=5).map(
            lambda rows: "\n".join(["id,fixed,moving,note", *rows]).encode("utf-8", "replace")
        ),
    )
)
def test_tables_given_to_register(tmp_path_factory, registrar, content):
    folder = tmp_path_factory.getbasetemp() / "tables"
    folder.mkdir(exist_ok=True)
    (folder / "pairs.csv").write_bytes(content)
    write_image(folder / "good.png", np.random.default_rng(0).random((40, 48)).astype(np.float32))
    before = set(folder.parent.iterdir())
    shutil.rmtree(folder / "out", ignore_errors=True)
    try:
        rows = read_pairs(folder / "pairs.csv")
    except InputError as error:
        assert "pairs.csv" in str(error)
        return
    records = register_all(rows, registrar, folder / "out")
    assert len(records) == len(rows)
    for record in records:
        assert record["status"] in ("ok", "failed"), record
        assert "internal error" not in record["reason"], record
    assert set(folder.parent.iterdir()) == before, "nothing is written outside of the folder"


@pytest.fixture(scope="module")
def small_sets(tiny_data, tmp_path_factory) -> tuple[Path, Path]:
    """Three small generated eyes and one real pair; each case damages a copy of them."""
    root = tmp_path_factory.mktemp("small")
    for eye in ("1_A", "2_A", "3_A"):
        for path in (tiny_data / eye).iterdir():
            if path.stem.split("_", 2)[2] in ("cf", "cf_512", "fa_gen", "seg"):
                (root / "generated" / eye).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / "generated" / eye / path.name)
    pair = make_pair(tiny_data / "1_A", "cf", "fa_gen", 12.0, 0.9)
    write_numbered_pair(root / "real", "1_1", "001", pair)
    return root / "generated", root / "real"


def with_damage(data, source: Path, target: Path) -> Path:
    """A copy of a data set with one file damaged or missing."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    path = data.draw(
        st.sampled_from(sorted(path for path in target.rglob("*.*") if path.is_file()))
    )
    if data.draw(st.integers(0, 5)) == 0:
        path.unlink()
    else:
        path.write_bytes(data.draw(damaged([path.read_bytes()])))
    return target


@cases(40)
@given(data=st.data())
def test_generated_data_sets(tmp_path_factory, small_sets, data):
    root = with_damage(data, small_sets[0], tmp_path_factory.getbasetemp() / "fuzzed_generated")
    found = check(root, "generated", ["cffa"]).problems
    try:
        samples, lacking = discover_samples(root, ["cffa"])
        views = AlignedPairs(samples, ViewGeometry(img_size=64, long_side=96))
        for index in range(len(samples)):
            views[ViewKey(1, index)]
        assert not lacking or found
    except InputError as error:
        assert str(error) in found, "check() lists every error that stops a run"


@cases(30)
@given(data=st.data())
def test_real_data_sets(tmp_path_factory, small_sets, untrained_weights, data):
    root = with_damage(data, small_sets[1], tmp_path_factory.getbasetemp() / "fuzzed_real")
    try:
        load_real_pairs(root)
    except InputError as error:
        assert str(root.name) in str(error)
    given = ("--real", root, "--weights", untrained_weights, "--device", "cpu")
    given += ("--img_size", 64, "--rotations", 0, "--no_pictures", "--out", root / "out")
    with pytest.MonkeyPatch.context() as patch:
        code = run_main(evaluate, patch, *given)
    assert code in (0, 2)


@cases(30)
@given(row=st.tuples(CELLS, CELLS, CELLS))
def test_single_rows(tmp_path_factory, registrar, row):
    out = tmp_path_factory.getbasetemp() / "rows"
    shutil.rmtree(out, ignore_errors=True)
    (record,) = register_all([PairToRegister(*row, {})], registrar, out)
    assert record["status"] == "failed" and record["reason"]
    assert "internal error" not in record["reason"]
