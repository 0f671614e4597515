"""Shared by several test files: small input files of every kind, and ways to run the scripts."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from geometry.matrices import Size, affine_about, image_centre, translation_matrix
from geometry.points import warp_points
from model.loftr_vessel import LoFTRSettings
from model.super_retina_multimodal import ModelSettings
from registration.matcher import MatchSettings
from registration.trained_matchers import build_model, describe_model
from training.progress import MEASURED
from utils.checkpoint import save_checkpoint
from utils.errors import run_script
from utils.image_files import read_color, read_gray, write_image

SMALL_MODEL = ModelSettings(widths=(8, 16, 16), descriptor_dim=16)
SMALL_LOFTR = LoFTRSettings(
    stem="ridge",
    initial_dim=8,
    block_dims=(8, 8, 16),
    heads=2,
    coarse_layers=1,
    temperature=0.07,
    unit_features=True,
    position_scale=0.1,
    position_cells=16,
    cell_offset_px=0.0,
)
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_pairs"


def run_main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a script's ``main`` as the shell would, in this process. Returns its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    try:
        run_script(module.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def save_untrained(path: Path, settings: ModelSettings = SMALL_MODEL, long_side: int = 192) -> Path:
    """Write a checkpoint of an untrained network, as a training run would."""
    torch.manual_seed(0)
    content = describe_model(settings, MatchSettings(long_side=long_side))
    save_checkpoint(path, content | {"model": build_model(settings).state_dict()})
    return path


def warp_picture(image: np.ndarray, H_own_to_out: np.ndarray, size: Size) -> np.ndarray:
    """Resample an image by OpenCV, independently of the warping under test.

    Args:
        image: (H, W) or (H, W, 3).
        H_own_to_out: (3, 3) affine, pixels of the image to pixels of the result.
        size: (height, width) of the result.
    """
    return cv2.warpAffine(image, H_own_to_out[:2], size[::-1], flags=cv2.INTER_LINEAR)


def blurred_noise(size: Size) -> np.ndarray:
    """Uniform noise (height, width) float32 in [0, 1] after a Gaussian blur of 2 px sigma."""
    noise = np.random.default_rng(0).uniform(0, 1, size).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2.0)


def write_points(path: Path, points: np.ndarray) -> Path:
    """Write a landmark file: one point per line; ``points`` is (N, 2) or (N, 4)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in points),
        encoding="utf-8",
    )
    return path


def truncate(path: Path, share: float) -> None:
    """Keep only the first ``share`` of the bytes of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def make_pair(
    folder: Path, fixed_suffix: str, moving_suffix: str, angle: float, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A pair with a known matrix; the two images have different, non-square sizes.

    Args:
        folder: of a generated eye.
        fixed_suffix, moving_suffix: of the image files in it.
        angle: rotation of the moving image, degrees.
        scale: moving pixels per fixed pixel.

    Returns:
        fixed (H, W, 3), moving (H, W), ``H_fix_to_mov`` (3, 3), landmarks (8, 2) of each image.
    """
    fixed = read_color(folder / f"{folder.name}_{fixed_suffix}.png")
    moving = read_gray(folder / f"{folder.name}_{moving_suffix}.png")
    side = fixed.shape[0]
    fixed_size, moving_size = (side - 24, side), (side + 8, side - 10)
    H_own_to_fix = translation_matrix([0.0, -12.0])
    H_own_to_mov = affine_about(
        angle, scale, 0.02, image_centre((side, side)), image_centre(moving_size) + [3.5, -2.0]
    )
    H_fix_to_mov = H_own_to_mov @ np.linalg.inv(H_own_to_fix)
    rng = np.random.default_rng(7)
    landmarks = rng.uniform([0.3 * side, 0.25 * side], [0.7 * side, 0.6 * side], (8, 2))
    return (
        warp_picture(fixed, H_own_to_fix, fixed_size),
        warp_picture(moving, H_own_to_mov, moving_size),
        H_fix_to_mov,
        landmarks,
        warp_points(landmarks, H_fix_to_mov),
    )


def write_numbered_pair(
    root: Path, name: str, number: str, pair: tuple, roles: tuple[str, str] = ("01", "02")
) -> Path:
    """Write a pair in the numbered layout; ``roles`` are the numbers of fixed and moving image."""
    folder = root / name
    for role, image, points in zip(roles, (pair[0], pair[1]), (pair[3], pair[4]), strict=True):
        write_image(folder / f"{number}_{role}.png", image)
        write_points(folder / f"{number}_{role}.txt", points)
    return folder


TINY_RUN = {
    "model": {"widths": [8, 8, 8], "descriptor_dim": 8},
    "view": {"img_size": 64, "long_side": 96},
    "match": {"long_side": 96},
    # Lenient thresholds: the value map of an untrained network receives candidates too.
    "loss": {
        "pke": {
            "min_probability": 0.0,
            "partner_probability": 0.0,
            "max_candidates": 16,
            "max_reprojection_px": 9.0,
            "max_distance_ratio": 9.0,
            "admit_value": 0.3,
        }
    },
    "train": {"batch_size": 2, "views_per_sample": 1, "workers": 0, "save_seconds": 0},
    "validation": {"pairs": 2, "pictures": 1},
}


class ForkedRuns:
    """Runs the training script in forks of one process that has imported all modules.

    See tests/forked_runs.py.
    """

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[1]
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_runs.py"))],
            cwd=root,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: object, **request: object) -> dict:
        """Run the script once.

        Returns:
            A dict with ``codes``, ``output`` and ``events``.
        """
        self.server.stdin.write(
            json.dumps({"arguments": [str(word) for word in arguments], **request}) + "\n"
        )
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.server.stdin.close()
        self.server.wait(timeout=60)


def without_measured(content: dict) -> dict:
    """A checkpoint without the measured values: times and memory."""
    content = content | {
        "progress": {name: part for name, part in content["progress"].items() if name != "seconds"}
    }
    content["history"] = [
        {name: value for name, value in record.items() if name not in MEASURED}
        for record in content["history"]
    ]
    return content


def assert_equal_nested(a: object, b: object, where: str = "") -> None:
    """Require bit-identical values, tensors included; NaN equals NaN."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_nested(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_nested(x, y, f"{where}[{index}]")
    else:
        assert a == b or (a != a and b != b), where


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def error_of(reply: dict, code: int = 2) -> str:
    """The one error line of a forked run that ended with an exit code, without a traceback."""
    assert reply["codes"] == [code] and "Traceback" not in reply["output"], reply["output"]
    return next(line for line in reply["output"].splitlines() if line.startswith("error: "))
