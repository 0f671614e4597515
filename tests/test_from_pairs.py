"""From registered pairs to training data: which are taken, where vessels lie; it trains."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import read_table, run_main
from register_runs import write_table

from dataset import from_pairs
from dataset.aligned_images import AlignedImages, ridge_mask
from dataset.check import check
from dataset.samples import discover_samples, load_sample
from geometry.matrices import affine_about, image_centre
from geometry.rasters import register_onto_fixed
from synthesis.vessel_drawing import View, draw_vessels
from synthesis.vessel_growth import grow_eye
from utils.image_files import read_color, read_gray, read_mask, write_image

SIDE = 192


def make_results(root: Path, generated: Path, names: list[str], **columns: list[str]) -> Path:
    """Results of register.py for generated pairs with turned angiograms; the true transforms."""
    rows = []
    for index, name in enumerate(names):
        folder = root / "out" / name
        centre = image_centre((SIDE, SIDE))
        H = affine_about(15.0 + 5 * index, 0.9, 0.0, centre, centre + [4.0, 3.0])
        moving = register_onto_fixed(
            read_gray(generated / name / f"{name}_fa_gen.png"), np.linalg.inv(H), (SIDE, SIDE + 10)
        )
        write_image(root / "images" / f"{name}_fa.png", moving)
        fixed = generated / name / f"{name}_cf.png"
        sizes = {"fixed": (SIDE, SIDE), "moving": (SIDE, SIDE + 10)}
        paths = {"fixed": str(fixed), "moving": str(root / "images" / f"{name}_fa.png")}
        content = {"status": "ok", "reason": "", "H_fix_to_mov": H.tolist()} | {
            role: {"path": paths[role], "height": size[0], "width": size[1]}
            for role, size in sizes.items()
        }
        folder.mkdir(parents=True)
        (folder / "transform.json").write_text(json.dumps(content), encoding="utf-8")
        rows.append({"id": name, "status": "ok"} | {key: of[index] for key, of in columns.items()})
    return write_table(root / "out" / "results.csv", rows)


@pytest.fixture
def run(monkeypatch, tmp_path):
    def command(*arguments: object) -> int:
        return run_main(from_pairs, monkeypatch, *arguments, "--out", tmp_path / "set")

    return command


def folders(tmp_path: Path) -> dict[str, str]:
    """Id of each folder of the data set."""
    return {row["folder"]: row["id"] for row in read_table(tmp_path / "set" / "from_pairs.csv")}


def test_aligned_folders_with_vessels_where_they_are(run, generated_root, tmp_path, capsys):
    results = make_results(tmp_path, generated_root, ["1_A", "2_A"])
    assert run(results, "--mode", "cffa") == 0
    assert folders(tmp_path) == {"1_A": "1_A", "2_A": "2_A"}
    assert "2 pairs of 2 eyes; vessel masks: 2 ridges" in capsys.readouterr().out
    samples, lacking = discover_samples(tmp_path / "set", ["cffa"])
    assert len(samples) == 2 and not lacking
    for sample in samples:
        name = sample.fixed.parent.name
        truth = generated_root / name
        assert np.array_equal(read_color(sample.fixed), read_color(truth / f"{name}_cf.png"))
        angiogram, moving = read_gray(truth / f"{name}_fa_gen.png"), read_gray(sample.moving)
        inner = (slice(40, -40),) * 2
        assert np.corrcoef(angiogram[inner].ravel(), moving[inner].ravel())[0, 1] > 0.9
        found, vessels = read_mask(sample.mask), read_mask(truth / f"{name}_seg.png")
        near = cv2.dilate(vessels.astype(np.uint8), np.ones((5, 5))) > 0
        assert 0.005 < found.mean() < 0.15 and (found & near).sum() > 0.7 * found.sum()
        assert load_sample(sample, 96, 1.0).shape == (6, 96, 96)


def test_the_mask_marks_the_vessels_of_a_pair_that_overlaps_in_half():
    """Dark vessels in the fixed image, bright ones in the moving image, which shows the left."""
    view = View(np.array([0.0, 0.0]), 512 / 6.0, 512, 0.0)
    tree = draw_vessels(grow_eye(np.random.default_rng(4)).vein, view, widths_px=(2.5, np.inf))
    y, x = np.mgrid[:512, :512] - 256
    field, left = np.hypot(x, y) < 240, x < 0
    noise = np.random.default_rng(0).normal(0.0, 0.03, (2, 512, 512))
    fixed = np.where(field, 0.5 - 0.2 * tree + noise[0], 0.0)
    moving = np.where(field & left, 0.3 + 0.3 * tree + noise[1], 0.0)
    pair = [np.clip(image, 0.0, 1.0).astype(np.float32) for image in (fixed, moving)]
    mask = ridge_mask(AlignedImages(*pair, field, field & left, (512, 512)))
    truth, inner = tree > 0.5, (np.hypot(x, y) < 220) & (abs(x) > 20)
    near_truth, near_mask = (
        cv2.dilate(each.astype(np.uint8), np.ones((5, 5))) > 0 for each in (truth, mask)
    )
    for half in (inner & left, inner & ~left):
        assert (mask & near_truth & half).sum() > 0.9 * (mask & half).sum() > 100
        assert (truth & near_mask & half).sum() > 0.5 * (truth & half).sum()


def test_only_registered_and_accepted_pairs_are_taken(run, generated_root, tmp_path, capsys):
    names = ["1_A", "2_A", "3_A", "4_A", "5_A"]
    status = ["ok", "failed", "ok", "ok", "ok"]
    results = make_results(tmp_path, generated_root, names)
    masks = [str(generated_root / name / f"{name}_seg.png") for name in names]
    rows = [
        {"id": name, "status": each, "mask": mask}
        for name, each, mask in zip(names, status, masks, strict=True)
    ]
    write_table(results, rows)
    assert run(results, "--mode", "cffa") == 0
    assert list(folders(tmp_path).values()) == ["1_A", "3_A", "4_A", "5_A"]
    assert "left out, not registered: 2_A" in capsys.readouterr().out
    verdicts = {"1_A": "accept", "2_A": "accept", "3_A": "reject", "4_A": "unsure"}
    review = [{"id": name, "verdict": each, "note": ""} for name, each in verdicts.items()]
    write_table(results.parent / "review.csv", review)
    assert run(results, "--mode", "cffa") == 2, "the folder is not empty"
    assert "--overwrite" in capsys.readouterr().err
    assert run(results, "--mode", "cffa", "--overwrite") == 0
    assert folders(tmp_path) == {"1_A": "1_A"}
    assert not (tmp_path / "set" / "2_A").exists(), "of the run before"
    output = capsys.readouterr().out
    for words in ("says reject: 3_A", "says unsure: 4_A", "says nothing: 5_A"):
        assert words in output
    write_table(results.parent / "review.csv", [{"id": "1_A", "verdict": "maybe"}])
    assert run(results, "--mode", "cffa", "--overwrite") == 2
    assert "'maybe'" in capsys.readouterr().err


def test_visits_of_an_eye_share_its_number(run, generated_root, tmp_path):
    names = ["1_A", "2_A", "1_B", "3_A"]
    masks = [str(generated_root / name / f"{name}_seg.png") for name in names]
    eyes = ["x", "y", "x", "z"]
    results = make_results(tmp_path, generated_root, names, eye=eyes, mask=masks)
    assert run(results, "--mode", "cffa") == 0
    assert folders(tmp_path) == {"1_A": "1_A", "2_A": "2_A", "1_B": "1_B", "3_A": "3_A"}
    assert run(results, "--mode", "cffa", "--overwrite", "--eye", r"_(.)$") == 0
    assert folders(tmp_path) == {"1_A": "1_A", "1_B": "2_A", "2_A": "1_B", "1_C": "3_A"}
    assert [from_pairs._letters(index) for index in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]


def test_given_masks_and_modes_of_the_table(run, generated_root, tmp_path):
    names = ["1_A", "2_A"]
    results = make_results(tmp_path, generated_root, names, mode=["cffa", "cfoct"])
    mask = read_mask(generated_root / "1_A" / "1_A_seg.png")
    write_image(tmp_path / "masks" / "1_A.png", mask)
    assert run(results, "--masks", tmp_path / "masks", "--long_side", 128) == 0
    rows = read_table(tmp_path / "set" / "from_pairs.csv")
    assert [row["mask"] for row in rows] == ["given", "ridges"]
    written = read_mask(tmp_path / "set" / "1_A" / "1_A_seg.png")
    assert written.shape == (128, 128) and written.mean() == pytest.approx(mask.mean(), rel=0.2)
    assert (tmp_path / "set" / "2_A" / "2_A_oct.png").is_file()


def test_pairs_that_cannot_be_used_are_named(run, generated_root, tmp_path, capsys):
    results = make_results(tmp_path, generated_root, ["1_A", "2_A", "3_A", "4_A"])
    assert run(results) == 2 and "--mode" in capsys.readouterr().err
    (results.parent / "1_A" / "transform.json").unlink()
    (tmp_path / "images" / "2_A_fa.png").unlink()
    write_image(tmp_path / "images" / "3_A_fa.png", np.eye(64, dtype=np.float32))
    assert run(results, "--mode", "cffa") == 0
    output = capsys.readouterr().out
    assert list(folders(tmp_path).values()) == ["4_A"]
    for words in ("1_A", "2_A_fa.png: no such image", "3_A_fa.png: the transform is for"):
        assert words in output
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["3_A", "from_pairs.csv"]
    (tmp_path / "images" / "4_A_fa.png").unlink()
    assert run(results, "--mode", "cffa", "--overwrite") == 2
    assert "no accepted pair" in capsys.readouterr().err


def test_a_foreign_folder_is_never_emptied(run, generated_root, tmp_path, capsys):
    results = make_results(tmp_path, generated_root, ["1_A"])
    write_image(tmp_path / "set" / "1_A" / "holiday.png", np.eye(64, dtype=np.float32))
    assert run(results, "--mode", "cffa", "--overwrite") == 2
    assert (tmp_path / "set" / "1_A" / "holiday.png").is_file()


@pytest.mark.slow
def test_the_training_script_takes_the_result(
    run, generated_root, tiny_config, forked_runs, tmp_path
):
    names = ["1_A", "2_A", "3_A", "4_A"]
    results = make_results(tmp_path, generated_root, names)
    assert run(results, "--mode", "cffa") == 0
    (tmp_path / "set" / "notes").mkdir()
    assert not check(tmp_path / "set").problems
    options = f"--save {tmp_path / 'save'} --config {tiny_config} --data {tmp_path / 'set'}"
    reply = forked_runs(*options.split(), "--epoch", 1, "--name", "run", "--mode", "cffa")
    assert reply["codes"] == [0], reply["output"]
    assert (tmp_path / "save" / "cffa" / "run" / "latest.pth").is_file()
    assert "notes: ignored, because it is not named <num>_<letter>" in reply["output"]
