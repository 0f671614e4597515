"""The synthesiser: layout, determinism, alignment of modalities, and protection of other sets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from synthesis.__main__ import main
from synthesis.eyes import file_names
from synthesis.generated_set import write_generated_set
from synthesis.sources import find_sources
from synthesis.vessel_drawing import Vessels, View, draw_vessels
from synthesis.vessel_growth import grow_eye
from utils.errors import InputError
from utils.image_files import read_color, read_gray, read_mask, write_image

SIZE = 160
EYES = 5


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "generated"
    ids = write_generated_set(root, EYES, seed=3, size=SIZE, visits=2, progress=False)
    assert ids == [f"{eye}_{letter}" for eye in range(1, EYES + 1) for letter in "AB"]
    return root


def pictures(root: Path, name: str, size: int = SIZE) -> dict[str, np.ndarray]:
    paths = {role: root / name / file for role, file in file_names(name, size).items()}
    return {role: read_mask(p) if "seg" in role else read_gray(p) for role, p in paths.items()}


def contrast(image: np.ndarray, mask: np.ndarray, shown: np.ndarray) -> float:
    """Mean of vessel pixels minus mean of their near background, where the picture is not black."""
    near = (cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0) & (shown > 0)
    beside = near & (cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    vessel = mask & near
    return (
        float(image[vessel].mean() - image[beside].mean())
        if vessel.sum() > 30 and beside.sum() > 30
        else 0.0
    )


def test_every_file_has_the_right_name_and_size(generated: Path) -> None:
    names = file_names("1_A", 512)
    assert (names["cf"], names["cf_clip"]) == ("1_A_cf_512.png", "1_A_cf_clip_512.png")
    for eye in range(1, EYES + 1):
        shown = pictures(generated, f"{eye}_B")
        assert set(shown) == {"cf", "fa", "oct", "seg", "cf_clip", "octa", "seg_clip"}
        assert all(picture.shape == (SIZE, SIZE) for picture in shown.values())
    color = read_color(generated / "1_A" / "1_A_cf.png")
    assert color[..., 0].mean() > color[..., 2].mean(), "a fundus is red rather than blue"


def test_pixels_do_not_depend_on_processes_or_number_of_eyes(
    generated: Path, tmp_path: Path
) -> None:
    write_generated_set(
        tmp_path / "other", 2, seed=3, size=SIZE, visits=2, processes=2, progress=False
    )
    for name in ("1_A", "1_B", "2_A", "2_B"):
        for file in file_names(name, SIZE).values():
            assert (generated / name / file).read_bytes() == (
                tmp_path / "other" / name / file
            ).read_bytes(), file


def test_visits_and_eyes_differ(generated: Path) -> None:
    a, b, other = (pictures(generated, name) for name in ("1_A", "1_B", "2_A"))
    assert not np.array_equal(a["cf"], b["cf"]) and not np.array_equal(a["seg"], other["seg"])


def test_mask_share_is_that_of_real_masks(generated: Path) -> None:
    shares = [pictures(generated, f"{eye}_A")["seg"].mean() for eye in range(1, EYES + 1)]
    # Real masks (CHASE_DB1, HRF at 512 px) cover 4 to 11 %; at this size, thin vessels are widened.
    assert 0.03 < np.median(shares) < 0.16


def test_vessel_contrast_on_the_mask_has_the_right_sign(generated: Path) -> None:
    """Bright in FA and OCTA, dark in CF and OCT, in at least 80 %: a few are nearly invisible."""
    signs = {"cf": -1, "fa": 1, "oct": -1, "octa": 1, "cf_clip": -1}
    right = {role: [] for role in signs}
    for eye in range(1, EYES + 1):
        for letter in "AB":
            shown = pictures(generated, f"{eye}_{letter}")
            for role, sign in signs.items():
                mask = shown["seg_clip" if role in ("octa", "cf_clip") else "seg"]
                right[role].append(sign * contrast(shown[role], mask, shown[role] > 0.01) >= 0)
    assert all(np.mean(values) >= 0.8 for values in right.values()), right


def test_vessels_are_drawn_where_the_view_puts_them() -> None:
    """No half-pixel bias between the drawing and ``View.to_pixels``."""
    nodes = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    line = Vessels(nodes, np.array([0, 0, 1]), np.full(3, 0.3))
    for centre in ((1.0, 0.0), (1.0, 0.013), (0.95, -0.021)):
        view = View(np.array(centre), 20.0, 81, 0.0)
        drawn = draw_vessels(line, view)
        row = (drawn.sum(axis=1) * np.arange(81)).sum() / drawn.sum()
        assert abs(row - view.to_pixels(nodes[1])[1]) < 0.15
        assert abs(drawn[:, 40].sum() - 6.0) < 0.5, "0.3 disc diameters at 20 px each"


def test_growth_avoids_the_fovea_and_keeps_order() -> None:
    eye = grow_eye(np.random.default_rng(0))
    for tree in (eye.artery, eye.vein):
        assert (tree.parent[1:] < np.arange(1, len(tree.parent))).all(), (
            "parents come before their children"
        )
        assert (tree.width[tree.parent[1:]] >= tree.width[1:] - 1e-9).all(), (
            "vessels taper away from the disc"
        )
        assert np.linalg.norm(tree.nodes - eye.fovea, axis=1).min() > 0.5 * eye.avascular_radius


def test_complete_set_is_left_alone_and_a_different_one_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    arguments = {"seed": 1, "size": 64, "progress": False}
    write_generated_set(root, 2, **arguments)
    victim = root / "2_A" / "2_A_fa_gen.png"
    before = victim.stat().st_mtime_ns
    assert write_generated_set(root, 2, **arguments) == ["1_A", "2_A"]
    assert victim.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="different"):
        write_generated_set(root, 1, **arguments)
    write_generated_set(root, 1, overwrite=True, **arguments)
    assert not (root / "2_A").exists()


def test_an_interrupted_set_is_completed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_generated_set(root, 1, size=64, progress=False)
    (root / "synthesis.yaml").rename(root / "synthesis.unfinished.yaml")
    (root / "1_A" / "1_A_seg.png").unlink()
    write_generated_set(root, 1, size=64, progress=False)
    assert (root / "1_A" / "1_A_seg.png").is_file() and (root / "synthesis.yaml").is_file()
    assert not (root / "synthesis.unfinished.yaml").exists()


def test_foreign_folders_are_never_touched(tmp_path: Path) -> None:
    own = tmp_path / "1_A" / "precious.png"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(InputError, match="not a synthesised set"):
        write_generated_set(tmp_path, 1, size=64, overwrite=True, progress=False)
    assert own.read_bytes() == b"mine"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two small photographs (wider than high) with masks: a pale disc and four dark vessels."""
    for stem, at in (("Image_01L", 50), ("Image_01R", 130)):
        mask = np.zeros((120, 180), np.uint8)
        for end in ((10, 5), (170, 10), (15, 110), (165, 112)):
            cv2.line(mask, (at, 60), end, 255, 4)
        image = np.zeros((120, 180, 3), np.float32) + np.array((0.7, 0.4, 0.15), np.float32)
        cv2.circle(image, (at, 60), 12, (0.95, 0.9, 0.6), -1)
        image[mask > 0] *= 0.6
        write_image(tmp_path / "real" / "tiny" / "images" / f"{stem}.png", image)
        write_image(tmp_path / "real" / "tiny" / "masks" / f"{stem}.png", mask)
    return tmp_path / "real"


def test_real_photographs_are_kept_and_the_rest_aligned(photographs: Path, tmp_path: Path) -> None:
    ids = write_generated_set(
        tmp_path / "set", 0, size=SIZE, real={"cf": [photographs]}, progress=False
    )
    assert ids == ["1_A", "2_A"]
    shown = pictures(tmp_path / "set", "1_A")
    assert shown["cf"][:10].max() == 0, "padded above, the aspect kept"
    assert 0.38 < shown["cf"][40, 5] < 0.42, "the photograph itself"
    assert contrast(shown["fa"], shown["seg"], shown["cf"]) > 0
    assert contrast(shown["cf"], shown["seg"], shown["cf"]) < 0


def test_faulty_photograph_folders_are_refused(photographs: Path, tmp_path: Path) -> None:
    (photographs / "tiny" / "masks" / "Image_01R.png").unlink()
    with pytest.raises(InputError, match="Image_01R"):
        find_sources("cf", photographs)
    with pytest.raises(InputError, match="images"):
        find_sources("cf", tmp_path / "real" / "tiny" / "masks")
    with pytest.raises(InputError, match="no such folder"):
        find_sources("cf", tmp_path / "nowhere")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sheet = tmp_path / "sheet.png"
    assert (
        main(["--out", str(tmp_path / "set"), "--eyes", "1", "--size", "64", "--show", str(sheet)])
        == 0
    )
    assert read_color(sheet).shape == (192, 7 * 192, 3)
    assert main(["--out", str(tmp_path / "set"), "--eyes", "0"]) == 2
    assert "eyes = 0" in capsys.readouterr().err
