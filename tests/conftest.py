"""Data sets, weights and settings shared by the tests, written once per session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import (
    TINY_RUN,
    ForkedRuns,
    make_pair,
    save_untrained,
    write_numbered_pair,
    write_points,
)
from playwright.sync_api import Browser, sync_playwright
from review_helpers import CHROMIUM, write_results_folder

from geometry.matrices import resize_matrix
from geometry.points import warp_points
from synthesis.generated_set import write_generated_set
from utils.image_files import write_image


@pytest.fixture(scope="session", autouse=True)
def _own_data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps decoded samples of training runs out of the cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def generated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six eyes, two visits each, 192 px, in the user's generated layout. Read only."""
    root = tmp_path_factory.mktemp("generated") / "set"
    write_generated_set(root, 6, seed=5, size=192, visits=2, progress=False)
    return root


@pytest.fixture(scope="session")
def large_eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a generated eye of 512 px, whose vessels can be compared. Read only."""
    root = tmp_path_factory.mktemp("large") / "set"
    write_generated_set(root, 1, seed=5, size=512, progress=False)
    return root / "1_A"


@pytest.fixture(scope="session")
def numbered_root(
    generated_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, np.ndarray]]:
    """Three CF-FA pairs of two eyes in the numbered layout. Read only.

    Returns:
        The folder, and the true ``H_fix_to_mov`` (3, 3) by key.
    """
    root, truth = tmp_path_factory.mktemp("numbered") / "cffa", {}
    for eye, name, number, angle, scale in (
        ("1_A", "1_1", "001", 12.0, 0.9),
        ("1_B", "1_2", "002", -20.0, 1.05),
        ("2_A", "2_1", "003", 5.0, 0.95),
    ):
        pair = make_pair(generated_root / eye, "cf", "fa_gen", angle, scale)
        write_numbered_pair(root, name, number, pair)
        truth[f"cffa_{name}_{number}"] = pair[2]
    return root, truth


@pytest.fixture(scope="session")
def cfocta_root(
    generated_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, np.ndarray]]:
    """Two CF-OCTA pairs in the layout of that data set. Read only.

    Landmarks are in a 256 x 256 frame; the names of the folders differ in their capitals.

    Returns:
        The folder, and the true ``H_fix_to_mov`` (3, 3) by key.
    """
    root, truth = tmp_path_factory.mktemp("cfocta") / "set", {}
    for eye, number, angle in (("1_A", "1", 10.0), ("2_A", "10", -15.0)):
        fixed, moving, H, fixed_points, moving_points = make_pair(
            generated_root / eye, "cf_clip", "octa_gen", angle, 1.0
        )
        write_image(root / "CF_ts" / f"{number}.png", fixed)
        write_image(root / "OCTA_ts" / f"{number}OCTA.png", moving)
        columns = [
            warp_points(points, resize_matrix(image.shape[:2], (256, 256)))
            for points, image in ((fixed_points, fixed), (moving_points, moving))
        ]
        write_points(
            root / "Ground_Truth_Ts" / f"{number}Fundus_OCTA_points.txt", np.hstack(columns)
        )
        truth[f"cfocta_Ts_{number}"] = H
    return root, truth


@pytest.fixture(scope="session")
def untrained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small untrained network, for tests that do not need accuracy. Read only."""
    return save_untrained(tmp_path_factory.mktemp("weights") / "untrained.pth")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six eyes, 96 px, in the generated layout, for training runs of seconds. Read only."""
    root = tmp_path_factory.mktemp("tiny") / "generated"
    write_generated_set(root, eyes=6, size=96, progress=False)
    return root


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a training run of seconds that saves after every step."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_RUN), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def forked_runs() -> Iterator[ForkedRuns]:
    """Runs the training script in forks of one process; see tests/forked_runs.py."""
    runs = ForkedRuns()
    yield runs
    runs.close()


@pytest.fixture
def writable_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A writable copy of the tiny data set."""
    shutil.copytree(tiny_data, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def new_run(tiny_config: Path, tmp_path: Path) -> Callable[..., tuple[list, Path]]:
    """Arguments of a new run of one epoch on a data set, and its folder."""
    save = tmp_path / "save"

    def arguments(data: Path, *more: object) -> tuple[list, Path]:
        options = f"--save {save} --config {tiny_config} --data {data} --epoch 1 --name run"
        return [*options.split(), *more], save / "cffa" / "run"

    return arguments


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium, for the tests of reports and of the review page."""
    with sync_playwright() as playwright:
        # The sandbox needs rights that containers do not give; only pages of the tests are opened.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def results(tmp_path: Path, generated_root: Path) -> Path:
    """A results folder of five pairs, the third failed, for the tests of the review page."""
    return write_results_folder(
        tmp_path, generated_root, ["p1", "p2", "p3", "p4", "<b>5</b>"], failed=["p3"]
    )
