"""A fifth of the teaching pairs is wrong on purpose: they leave, and the result is as without them.

The shipped weights are fine-tuned on ten landmark pairs; the landmarks of two are turned about
their centre.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers import make_pair, write_numbered_pair

from dataset.split import write_manifest
from geometry.matrices import affine_about
from geometry.points import warp_points
from registration.registrar import DEFAULT_WEIGHTS
from synthesis.generated_set import write_generated_set
from utils.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

EYES = (1, 2, 3, 4, 5)
WRONG = ("3_A", "5_B")
# Views so small have few matches; a pair must be shown several hundred of them to be judged.
SETTINGS = [
    *("view.long_side=320", "match.long_side=320", "data.photometric=false"),
    *("validation.select=generated", "validation.pairs=8", "validation.pictures=0"),
    *("validation.every=100", "real.teaching.evidence.least_share=0.1"),
]


def write_real(root: Path, generated: Path, with_wrong: bool) -> Path:
    """Write the pairs in the numbered layout; the wrong ones only if they are wanted."""
    for number, name in enumerate(f"{eye}_{visit}" for eye in EYES for visit in "AB"):
        if name in WRONG and not with_wrong:
            continue
        pair = make_pair(generated / name, "cf", "fa_gen", 3.0 * number, 0.95)
        if name in WRONG:
            centre = pair[4].mean(axis=0)
            turned = warp_points(pair[4], affine_about(40.0, 1.0, 0.0, centre, centre))
            pair = (*pair[:4], turned)
        write_numbered_pair(root, name, f"{number:03d}", pair)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, forked_runs) -> dict[str, Path]:
    """The folders of the run with the wrong pairs, and of the one without them."""
    folder = tmp_path_factory.mktemp("wrong")
    generated = folder / "generated"
    write_generated_set(generated, 8, seed=9, size=320, visits=2, progress=False)
    train = [*map(str, EYES), "6"]
    real = {"train": [f"marked/{eye}" for eye in EYES], "val": [], "test": []}
    split = {"train": train, "val": ["7"], "test": ["8"]}
    write_manifest(folder / "split.yaml", [str(generated)], None, split, real)
    folders = {}
    for name in ("wrong", "right"):
        root = write_real(folder / name / "marked", generated, name == "wrong")
        arguments = ["--config", "configs/superretina_real.yaml", "--data", generated]
        arguments += ["--pretrained", DEFAULT_WEIGHTS, "--split", folder / "split.yaml"]
        arguments += ["--real", root, "--real_forms", "landmarks", "--real_share", 0.75]
        arguments += ["--epoch", 4, "--img_size", 128, "--views_per_sample", 6, "--workers", 0]
        arguments += ["--save", folder, "--name", name, "--set", *SETTINGS]
        reply = forked_runs(*arguments)
        assert reply["codes"] == [0], reply["output"]
        folders[name] = folder / "cffa" / name
    return folders


def test_the_wrong_pairs_are_gone_by_the_end_and_no_other(runs):
    with open(runs["wrong"] / "teaching" / "pairs.csv", encoding="utf-8") as file:
        left = {row["key"] for row in csv.DictReader(file) if row["status"] == "left"}
    assert len(left) == len(WRONG)
    assert all(any(f"_{name}_" in key for key in left) for name in WRONG), left
    assert "its matches disagree" in (runs["wrong"] / "teaching" / "index.html").read_text()
    with open(runs["right"] / "teaching" / "pairs.csv", encoding="utf-8") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"accepted"}


def test_the_result_is_that_of_training_without_them(runs):
    with_wrong, without = (
        read_checkpoint(runs[name] / "latest.pth")["history"][-1] for name in ("wrong", "right")
    )
    for figure in ("val_MMA@3", "val_precision", "val_repeatability"):
        assert with_wrong[figure] == pytest.approx(without[figure], rel=0.15), figure
