"""The first minutes of a user: the pair in the repository, --version, import from elsewhere."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from helpers import run_main

import evaluate
import register
import train_loftr_v3
import train_multimodal_e2e
from examples.example_pair import MOVING_SIZE, SCALE, SIDE_PX, TURN_DEG
from geometry.matrices import affine_about, image_centre
from geometry.points import pixel_grid, warp_points
from registration.registrar import Registrar
from utils.image_files import read_color, read_gray
from utils.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PAIR = ROOT / "examples" / "pair"


@pytest.mark.parametrize(
    "script", [register, evaluate, train_multimodal_e2e, train_loftr_v3], ids=lambda it: it.__name__
)
def test_every_script_says_its_version(script, monkeypatch, capsys):
    assert run_main(script, monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"retinal-registration {VERSION}\n"


def test_the_pair_in_the_repository_is_small():
    assert read_color(PAIR / "cf.jpg").shape == (SIDE_PX, SIDE_PX, 3)
    assert read_gray(PAIR / "fa.jpg").shape == MOVING_SIZE
    assert sum(path.stat().st_size for path in PAIR.iterdir()) < 100_000


@pytest.mark.slow
def test_the_pair_in_the_repository_is_registered_by_the_shipped_weights():
    result = Registrar(device="cpu").register(PAIR / "cf.jpg", PAIR / "fa.jpg")
    assert result.status == "ok" and result.matrix is not None
    H = affine_about(
        TURN_DEG,
        SCALE,
        0.0,
        image_centre((SIDE_PX, SIDE_PX)),
        image_centre(MOVING_SIZE) + [6.0, -9.0],
    )
    points = pixel_grid((SIDE_PX, SIDE_PX)).numpy()[:: 40 * SIDE_PX + 37]
    error = np.linalg.norm(warp_points(points, result.matrix) - warp_points(points, H), axis=1)
    assert error.mean() < 2.0


@pytest.mark.slow
def test_an_installation_in_place_works_from_any_folder(tmp_path):
    pytest.importorskip("setuptools")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    packages = next((tmp_path / "env").rglob("site-packages"))
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--editable", ROOT]
    subprocess.run([str(word) for word in pip], check=True, timeout=300)
    code = (
        "from register import Registrar; from registration.registrar import DEFAULT_WEIGHTS; "
        "from importlib.metadata import version; "
        "print(DEFAULT_WEIGHTS.is_file(), version('retinal-registration'), Registrar.__name__)"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", VERSION, "Registrar"]
