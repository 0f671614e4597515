"""Use from Python: the example and the result of ``Registrar.register``."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from registration.registrar import Registrar
from utils.errors import InputError
from utils.image_files import read_color, read_gray

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_example_runs(generated_root, untrained_weights, tmp_path):
    cf = generated_root / "1_A" / "1_A_cf.png"
    command = [sys.executable, PROJECT / "examples" / "from_python.py", cf, cf]
    command += ["--weights", untrained_weights, "--out", "out"]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Result(ok" in done.stdout and "matches agree" in done.stdout
    assert np.abs(read_color(tmp_path / "out" / "registered.png") - read_color(cf)).mean() < 0.02
    assert read_color(tmp_path / "out" / "overview.png").shape[1] > 600


def test_the_result_warps_and_plots(generated_root, untrained_weights, tmp_path):
    image = read_color(generated_root / "1_A" / "1_A_cf.png")
    moving = cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_LINEAR)
    result = Registrar(untrained_weights, device="cpu").register(image, moving)
    assert result.status == "ok" and result.matrix is result.registration.H_fix_to_mov
    assert len(result.matches.fixed_points) == result.n_matches
    assert result.matches.inliers.sum() == result.n_inliers
    assert result.warp().shape == image.shape and np.abs(result.warp() - image).mean() < 0.03
    assert result.warp(moving[..., 1]).shape == image.shape[:2]
    with pytest.raises(InputError, match="192 x 192.*288 x 288"):
        result.warp(image)
    result.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20000
    with pytest.raises(AttributeError):
        _ = result.nothing_of_this_name


def test_a_failed_result_has_no_matrix_and_refuses_to_warp(generated_root, untrained_weights):
    ramp = np.tile(np.linspace(0.2, 0.8, 96, dtype=np.float32), (80, 1))
    result = Registrar(untrained_weights, device="cpu").register(
        generated_root / "1_A" / "1_A_cf.png", ramp
    )
    assert result.matrix is None and "failed" in repr(result) and math.isfinite(result.seconds)
    with pytest.raises(InputError, match="failed"):
        result.warp()
    assert result.plot().axes and read_gray(generated_root / "1_A" / "1_A_cf.png").ndim == 2
