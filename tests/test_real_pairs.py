"""Real pairs: layouts, the affine through the landmarks, and landmarks that are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REAL_DATA, make_pair, run_main, write_numbered_pair, write_points

import dataset.real_pairs
from dataset.layouts import LAYOUTS
from dataset.real_pairs import load_real_pairs
from geometry.points import warp_points
from utils.errors import InputError
from utils.image_files import read_color, read_gray, write_image


@pytest.fixture
def one_pair(generated_root, tmp_path):
    """One writable pair in the numbered layout: its root, its folder, and what was written."""
    pair = make_pair(generated_root / "1_A", "cf", "fa_gen", 12.0, 0.9)
    return tmp_path / "set", write_numbered_pair(tmp_path / "set", "1_1", "001", pair), pair


def test_numbered_layout_gives_the_known_matrices(numbered_root):
    root, truth = numbered_root
    pairs = load_real_pairs(root, "cffa")
    assert [pair.key for pair in pairs] == list(truth) and [pair.eye for pair in pairs] == [
        "1",
        "1",
        "2",
    ]
    for pair in pairs:
        assert np.allclose(pair.H_fix_to_mov, truth[pair.key], atol=1e-3)
        assert pair.median_residual < 1e-3 and len(pair.fixed_landmarks) == 8
        fixed, moving = pair.images()
        assert fixed.shape == (168, 192) and moving.shape == (200, 182), "native sizes are kept"
        assert all(image.ndim == 3 for image in pair.color_images())


def test_roles_are_a_setting(generated_root, tmp_path):
    """A set with 01 = OCT and 02 = CF: with fixed_role 02 the photograph is the fixed image."""
    pair = make_pair(generated_root / "2_A", "cf", "oct_gen", -8.0, 1.0)
    folder = write_numbered_pair(tmp_path, "2_1", "007", pair, roles=("02", "01"))
    (right,), (swapped,) = (
        load_real_pairs(tmp_path, "cfoct", fixed_role="02"),
        load_real_pairs(tmp_path, "cfoct"),
    )
    assert right.fixed_path == folder / "007_02.png" and right.moving_path == folder / "007_01.png"
    assert np.allclose(right.H_fix_to_mov, pair[2], atol=1e-3)
    assert np.allclose(swapped.H_fix_to_mov, np.linalg.inv(pair[2]), atol=1e-3)
    with pytest.raises(InputError, match="fixed_role"):
        load_real_pairs(tmp_path, "cfoct", fixed_role="03")


def test_oct_fa_pairs_in_the_numbered_layout(generated_root, tmp_path):
    pair = make_pair(generated_root / "3_A", "oct_gen", "fa_gen", 15.0, 1.05)
    write_numbered_pair(tmp_path, "3_2", "011", pair)
    (loaded,) = load_real_pairs(tmp_path, "octfa")
    assert loaded.key == "octfa_3_2_011" and np.allclose(loaded.H_fix_to_mov, pair[2], atol=1e-3)


def test_cfocta_layout_scales_from_its_256_space(cfocta_root):
    root, truth = cfocta_root
    pairs = {pair.key: pair for pair in load_real_pairs(root, "cfocta")}
    assert set(pairs) == set(truth), "number 1 is not confused with number 10"
    for pair in pairs.values():
        assert (
            np.allclose(pair.H_fix_to_mov, truth[pair.key], atol=1e-3)
            and pair.median_residual < 1e-3
        )
    line = (
        (root / "Ground_Truth_Ts" / "1Fundus_OCTA_points.txt")
        .read_text(encoding="utf-8")
        .split()[:4]
    )
    # The photograph has 192 x 168 px; pixel centres lie at (x + 1/2) / 256 of its width.
    wanted = [(float(line[0]) + 0.5) * 192 / 256 - 0.5, (float(line[1]) + 0.5) * 168 / 256 - 0.5]
    assert np.allclose(pairs["cfocta_Ts_1"].fixed_landmarks[0], wanted, atol=1e-4)


def test_an_image_that_fits_twice_or_never_is_refused(cfocta_root, tmp_path):
    root = shutil.copytree(cfocta_root[0], tmp_path / "set")
    shutil.copy(root / "CF_ts" / "1.png", root / "CF_ts" / "1CF.png")
    with pytest.raises(InputError, match="2 images match"):
        load_real_pairs(root, "cfocta")
    (root / "CF_ts" / "1CF.png").unlink()
    (root / "OCTA_ts" / "10OCTA.png").unlink()
    with pytest.raises(InputError, match="10Fundus_OCTA_points.txt.*0 images match"):
        load_real_pairs(root, "cfocta")


NEW_LAYOUT = """
from dataset.real_pair_files import Layout, RealPairFiles

def find(root, fixed_role):
    text = root / "pair.dat"
    return [RealPairFiles("1", "1", root / "a.png", root / "b.png", (text,))], []

LAYOUT = Layout("toy", "a.png, b.png, pair.dat", lambda root: (root / "pair.dat").exists(), find)
"""


@pytest.mark.slow
def test_a_new_file_is_enough_for_a_new_layout(generated_root, tmp_path):
    """A copy of the package with one more file recognises, offers and checks the new layout."""
    assert LAYOUTS == ("auto", "cfocta", "numbered")
    project = Path(dataset.real_pairs.__file__).resolve().parents[1]
    shutil.copytree(project / "dataset", tmp_path / "dataset")
    (tmp_path / "dataset" / "layouts" / "toy.py").write_text(NEW_LAYOUT, encoding="utf-8")
    fixed, moving, _, *points = make_pair(generated_root / "1_A", "cf", "fa_gen", 12.0, 0.9)
    write_image(tmp_path / "set" / "a.png", fixed)
    write_image(tmp_path / "set" / "b.png", moving)
    write_points(tmp_path / "set" / "pair.dat", np.hstack(points))
    command = (
        "import sys, runpy; from dataset.real_pairs import load_real_pairs as load;"
        "print(len(load('set', 'x', 'toy')[0].fixed_landmarks), load('set')[0].key, flush=True);"
        "sys.argv = ['check', 'set']; runpy.run_module('dataset.check', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(project)))},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["8 cffa_1", "set: 1 samples checked, 0 problems, 0 notes"]
    assert done.returncode == 0


def test_a_folder_of_no_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="no pairs of any layout.*NNN_01.png"):
        load_real_pairs(tmp_path)
    with pytest.raises(InputError, match="no pairs of the cfocta layout.*Ground_Truth"):
        load_real_pairs(tmp_path, layout="cfocta")


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".tif", ".PNG"])
def test_other_image_types(one_pair, suffix):
    """File name endings in capitals are accepted for both images of a pair."""
    root, folder, pair = one_pair
    for role in ("01", "02"):
        color = read_color(folder / f"001_{role}.png")
        (folder / f"001_{role}.png").unlink()
        write_image(folder / f"001_{role}{suffix.lower()}", color)
        (folder / f"001_{role}{suffix.lower()}").rename(folder / f"001_{role}{suffix}")
    (loaded,) = load_real_pairs(root)
    assert loaded.moving_path.name == f"001_02{suffix}" and np.allclose(
        loaded.H_fix_to_mov, pair[2], atol=1e-3
    )


def test_residual_of_imprecise_landmarks_is_reported(one_pair):
    """Noise of 1 px on the moving landmarks gives its median length as residual, px at 512."""
    root, folder, pair = one_pair
    rng = np.random.default_rng(0)
    fixed = rng.uniform(50, 140, (60, 2))
    write_points(folder / "001_01.txt", fixed)
    write_points(folder / "001_02.txt", warp_points(fixed, pair[2]) + rng.normal(0, 1.0, (60, 2)))
    (loaded,) = load_real_pairs(root)
    # The median length of a two-dimensional Gaussian is 1.18 times its standard deviation.
    assert loaded.median_residual == pytest.approx(1.18 * 512 / 200, rel=0.25)


def test_points_may_be_written_with_commas_blank_lines_and_a_byte_order_mark(one_pair):
    root, folder, pair = one_pair
    for path in folder.glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        path.write_text("\n" + text.replace(" ", ", ") + "\n\n", encoding="utf-8")
    (loaded,) = load_real_pairs(root)
    assert np.allclose(loaded.H_fix_to_mov, pair[2], atol=1e-3)
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text(encoding="utf-8").lstrip(), encoding="utf-8-sig")
    assert len(load_real_pairs(root)) == 1, "Windows editors put a byte order mark in front"


def test_landmarks_in_another_order_are_refused(one_pair):
    root, folder, pair = one_pair
    write_points(folder / "001_02.txt", pair[4][np.random.default_rng(1).permutation(8)])
    with pytest.raises(InputError, match="001_01.txt.*same point"):
        load_real_pairs(root)


def test_landmarks_of_the_other_image_are_refused(one_pair):
    """With exchanged roles a landmark lies outside of its image."""
    root, folder, pair = one_pair
    write_points(folder / "001_01.txt", np.vstack([pair[3], [[100.0, 190.0]]]))
    write_points(folder / "001_02.txt", np.vstack([pair[4], [[100.0, 190.0]]]))
    with pytest.raises(InputError, match="001_01.png.*192 x 168"):
        load_real_pairs(root)


def test_a_missing_partner_is_named(one_pair):
    root, folder, _ = one_pair
    (folder / "001_02.png").unlink()
    with pytest.raises(InputError, match="001_02.png"):
        load_real_pairs(root)


def test_contact_sheet_reports_the_residual(numbered_root, tmp_path, monkeypatch, capsys):
    arguments = ("--data", numbered_root[0], "--show", tmp_path / "pairs.png")
    assert run_main(dataset.real_pairs, monkeypatch, *arguments) == 0
    assert (
        "8 landmarks, affine leaves 0.00 px" in capsys.readouterr().out
        and read_gray(tmp_path / "pairs.png").size
    )


@pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason=f"no real pairs beside the project ({REAL_DATA})"
)
def test_the_real_development_pairs():
    pairs = [
        pair for name in ("cffa", "cfmono") for pair in load_real_pairs(REAL_DATA / name, name)
    ]
    assert len(pairs) == 8 and len({pair.key for pair in pairs}) == 8
    assert {pair.eye for pair in pairs} == {"27", "32", "84", "80", "102"}
    for pair in pairs:
        assert len(pair.fixed_landmarks) == 20
        assert 1.0 < pair.median_residual < 4.0, f"{pair.key}: {pair.median_residual}"
        assert 0.8 < np.sqrt(np.linalg.det(pair.H_fix_to_mov[:2, :2])) * 1.0 < 1.25


def test_a_part_of_a_divided_set_is_chosen(cfocta_root, numbered_root, tmp_path):
    root = shutil.copytree(cfocta_root[0], tmp_path / "set")
    for path in list(root.iterdir()):
        shutil.copytree(path, root / f"{path.name[:-2]}train")
    keys = {
        part: [pair.key for pair in load_real_pairs(root, "cfocta", part=part)]
        for part in ("all", "ts", "TRAIN")
    }
    assert sorted(keys["ts"]) == ["cfocta_Ts_1", "cfocta_Ts_10"]
    assert sorted(keys["TRAIN"]) == ["cfocta_train_1", "cfocta_train_10"]
    assert keys["all"] == keys["ts"] + keys["TRAIN"]
    with pytest.raises(InputError, match="no part 'val'; --part may be Ts, train or all"):
        load_real_pairs(root, "cfocta", part="val")
    assert len(load_real_pairs(numbered_root[0], part="ts")) == 3, "a set without parts is whole"
