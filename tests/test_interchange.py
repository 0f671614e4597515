"""What other programs read: ITK transforms, matches as tables and arrays, warped images and stacks, ONNX; the example."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import SimpleITK as sitk
import tifffile
import torch
from helpers import run_main

import register
from geometry import apply_transform
from geometry.apply_transform import warp_frame
from geometry.curved_transforms import QuadraticTransform
from geometry.matrices import affine_about
from geometry.points import inside as inside_of
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed, warp_image
from geometry.transform_files import SavedTransform, export_files, itk_transform, read_transform
from geometry.transforms import MatrixTransform
from model.super_retina_multimodal import ModelSettings, SuperRetinaMultimodal
from registration import export_onnx
from registration.export_onnx import export, largest_difference
from registration.registrar import DEFAULT_WEIGHTS, Registrar
from registration.trained_matchers import load_matcher
from utils.errors import InputError
from utils.image_files import read_color, read_gray

PROJECT = Path(register.__file__).parent
H = affine_about(25.0, 1.3, 0.08, [40, 30], [70.3, 55.8])
FIXED_SIZE, MOVING_SIZE = (80, 96), (130, 120)


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.uniform(0, 1, MOVING_SIZE).astype(np.float32), (0, 0), 2.0)


def write_transform(
    path: Path, matrix: np.ndarray | None = H, status: str = "ok", reason: str = ""
) -> Path:
    path.write_text(
        json.dumps(
            {
                "status": status,
                "reason": reason,
                "H_fix_to_mov": None if matrix is None else matrix.tolist(),
                "fixed": {"height": FIXED_SIZE[0], "width": FIXED_SIZE[1]},
                "moving": {"height": MOVING_SIZE[0], "width": MOVING_SIZE[1]},
            }
        ),
        encoding="utf-8",
    )
    return path


# --- ITK --------------------------------------------------------------------------------------------------------------


def test_itk_resamples_as_we_do(moving, tmp_path):
    (tmp_path / "transform.tfm").write_text(itk_transform(H), encoding="utf-8")
    transform = sitk.ReadTransform(str(tmp_path / "transform.tfm"))
    for point in ([0.0, 0.0], [95.0, 79.0], [33.25, 17.5]):
        assert np.allclose(
            transform.TransformPoint(point), warp_points(np.array([point]), H)[0], atol=1e-9
        )
    frame = sitk.GetImageFromArray(np.zeros(FIXED_SIZE, np.float32))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(sitk.GetImageFromArray(moving), frame, transform, sitk.sitkLinear)
    )
    # Without the blur against aliasing, which ITK does not apply and this scale would call for.
    ours = warp_image(
        torch.from_numpy(moving)[None, None], torch.from_numpy(H).float()[None], FIXED_SIZE
    )[0, 0].numpy()
    ys, xs = np.indices(FIXED_SIZE)
    mapped = warp_points(np.stack([xs, ys], -1).reshape(-1, 2).astype(float), H)
    inside = inside_of(mapped, MOVING_SIZE, 1.5).reshape(FIXED_SIZE)
    assert inside.mean() > 0.4 and np.abs(theirs - ours)[inside].max() < 1e-3


def test_a_homography_is_not_written_for_itk():
    bent = H.copy()
    bent[2, 0] = 1e-4
    with pytest.raises(InputError, match="homography"):
        itk_transform(bent)
    assert itk_transform(2.0 * H).splitlines()[3:] == itk_transform(H).splitlines()[3:], (
        "a matrix is one up to its scale"
    )


# --- matches ----------------------------------------------------------------------------------------------------------


def test_register_exports_matches_and_transform(
    generated_root, untrained_weights, monkeypatch, tmp_path
):
    cf = generated_root / "1_A" / "1_A_cf.png"
    assert (
        run_main(
            register,
            monkeypatch,
            cf,
            cf,
            "--out",
            tmp_path,
            "--weights",
            untrained_weights,
            "--device",
            "cpu",
            "--export",
            "itk",
            "csv",
            "numpy",
        )
        == 0
    )
    folder = tmp_path / "1_A_cf_1_A_cf"
    content = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
    arrays = np.load(folder / "matches.npz")
    assert np.array_equal(arrays["H_fix_to_mov"], content["H_fix_to_mov"])
    assert (
        len(arrays["fixed_points"]) == content["n_matches"]
        and arrays["inliers"].sum() == content["n_inliers"]
    )
    with open(folder / "matches.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    table = np.array(
        [
            [float(row[name]) for name in ("fixed_x", "fixed_y", "moving_x", "moving_y", "inlier")]
            for row in rows
        ]
    )
    assert (
        np.abs(
            table
            - np.column_stack([arrays["fixed_points"], arrays["moving_points"], arrays["inliers"]])
        ).max()
        < 1e-4
    )
    point = (50.0, 60.0)
    assert np.allclose(
        sitk.ReadTransform(str(folder / "transform.tfm")).TransformPoint(point),
        warp_points(np.array([point]), np.array(content["H_fix_to_mov"]))[0],
    )


# --- apply_transform --------------------------------------------------------------------------------------------------


def test_frames_keep_depth_channels_and_pages(moving, monkeypatch, tmp_path):
    deep = (moving * 60000).astype(np.uint16)
    color = np.stack([moving, 0.5 * moving, 1 - moving], -1)
    stack = np.stack([deep, deep[::-1], deep // 2])
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "color.png"), (color[..., ::-1] * 255 + 0.5).astype(np.uint8))
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", compression="lzw")
    tifffile.imwrite(
        tmp_path / "colors.tiff", np.stack([(color * 255).astype(np.uint8)] * 2), photometric="rgb"
    )
    assert (
        run_main(
            apply_transform,
            monkeypatch,
            "--transform",
            write_transform(tmp_path / "transform.json"),
            "--out",
            tmp_path / "out",
            *(tmp_path / name for name in ("deep.png", "color.png", "stack.tif", "colors.tiff")),
        )
        == 0
    )
    wanted = register_onto_fixed(moving, H, FIXED_SIZE)
    deep_out = cv2.imread(str(tmp_path / "out" / "deep.png"), cv2.IMREAD_UNCHANGED)
    assert deep_out.dtype == np.uint16 and np.abs(deep_out / 60000 - wanted).max() < 1e-4
    assert np.abs(read_color(tmp_path / "out" / "color.png")[..., 0] - wanted).max() < 0.01
    pages = tifffile.imread(tmp_path / "out" / "stack.tif")
    assert pages.shape == (3, *FIXED_SIZE) and pages.dtype == np.uint16
    for page, source in zip(pages, stack, strict=True):
        assert (
            np.abs(page - register_onto_fixed(source.astype(np.float32), H, FIXED_SIZE)).max() <= 1
        )
    assert tifffile.imread(tmp_path / "out" / "colors.tiff").shape == (2, *FIXED_SIZE, 3)


def test_there_and_back_again(moving):
    shift = MatrixTransform(np.array([[1.0, 0, 5], [0, 1, 3], [0, 0, 1]]))
    transform = SavedTransform(shift, (100, 90), MOVING_SIZE)
    there = warp_frame(moving, transform)
    back = warp_frame(there, transform, inverse=True)
    assert there.shape == (100, 90) and back.shape == MOVING_SIZE
    assert np.abs(back - moving)[5:100, 7:90].max() < 1e-5
    labels = (moving > 0.5).astype(np.uint8) * 7
    assert set(np.unique(warp_frame(labels, read_all(H), nearest=True))) <= {0, 7}


@pytest.mark.parametrize("bends", [0.0, 6.0])
def test_itk_resamples_by_a_field_what_is_not_affine(moving, tmp_path, bends):
    H = np.eye(3)
    H[2, 0] = 3e-4
    transform = MatrixTransform(H, "homography")
    if bends:
        frame = np.array([[1 / 60, 0, -1.0], [0, 1 / 60, -1.0], [0, 0, 1]])
        transform = QuadraticTransform(
            frame, np.array([[60.0, 55, 4, bends, 0, 2], [62.0, -3, 57, 1, -bends, 0]])
        )
    export_files(
        tmp_path,
        ["itk"],
        transform,
        transform.approximate_matrix(),
        FIXED_SIZE,
        np.zeros((0, 2)),
        np.zeros((0, 2)),
        np.zeros(0, bool),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["displacement_field.mha"]
    field = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(tmp_path / "displacement_field.mha"), sitk.sitkVectorFloat64)
    )
    frame = sitk.GetImageFromArray(np.zeros(FIXED_SIZE, np.float32))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(sitk.GetImageFromArray(moving), frame, field, sitk.sitkLinear)
    )
    ours = register_onto_fixed(moving, transform, FIXED_SIZE)
    inner = ours > 0
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False
    inner &= theirs > 0
    assert inner.mean() > 0.3 and np.abs(theirs - ours)[inner].max() < 0.02


def test_points_go_from_fixed_to_moving_and_back(monkeypatch, tmp_path, capsys):
    transform = write_transform(tmp_path / "transform.json")
    points = np.array([[0.0, 0.0], [95.0, 79.0], [33.25, 17.5]])
    (tmp_path / "points.txt").write_text("0 0\n95, 79\n\n33.25 17.5\n", encoding="utf-8")
    assert (
        run_main(
            apply_transform,
            monkeypatch,
            "--transform",
            transform,
            "--points",
            tmp_path / "points.txt",
            "--out",
            tmp_path / "there.txt",
        )
        == 0
    )
    assert np.abs(np.loadtxt(tmp_path / "there.txt") - warp_points(points, H)).max() < 1e-5
    assert (
        run_main(
            apply_transform,
            monkeypatch,
            "--transform",
            transform,
            "--points",
            tmp_path / "there.txt",
            "--out",
            tmp_path / "back.txt",
            "--inverse",
        )
        == 0
    )
    assert np.abs(np.loadtxt(tmp_path / "back.txt") - points).max() < 1e-5
    (tmp_path / "broken.txt").write_text("1 2 3\n", encoding="utf-8")
    for name, out, words in (
        ("broken.txt", "out.txt", "line 1"),
        ("points.txt", "points.txt", "overwrite"),
    ):
        assert (
            run_main(
                apply_transform,
                monkeypatch,
                "--transform",
                transform,
                "--points",
                tmp_path / name,
                "--out",
                tmp_path / out,
            )
            == 2
        )
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()


def read_all(matrix: np.ndarray) -> SavedTransform:
    return SavedTransform(MatrixTransform(matrix), FIXED_SIZE, MOVING_SIZE)


def test_what_does_not_fit_is_named(moving, monkeypatch, tmp_path, capsys):
    good = write_transform(tmp_path / "transform.json")
    image, other = tmp_path / "image.png", tmp_path / "other.tif"
    cv2.imwrite(str(image), (moving * 255).astype(np.uint8))
    tifffile.imwrite(other, np.zeros((2, 50, 60), np.uint8), photometric="minisblack")
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no")
    failed = write_transform(tmp_path / "failed.json", None, "failed", "too dark")
    (tmp_path / "foreign.json").write_text("{}", encoding="utf-8")
    for transform, path, words in (
        (good, other, ["other.tif", "120 x 130"]),
        (good, tmp_path / "broken.tif", ["broken.tif"]),
        (good, tmp_path / "gone.png", ["gone.png"]),
        (failed, image, ["failed.json", "too dark"]),
        (tmp_path / "foreign.json", image, ["foreign.json"]),
        (tmp_path / "gone.json", image, ["gone.json"]),
    ):
        assert (
            run_main(
                apply_transform,
                monkeypatch,
                "--transform",
                transform,
                "--out",
                tmp_path / "out",
                path,
            )
            == 2
        )
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    assert not list((tmp_path / "out").glob("*")), "nothing half written"
    assert (
        run_main(apply_transform, monkeypatch, "--transform", good, "--out", tmp_path, image) == 2
    )
    assert "overwrite itself" in capsys.readouterr().err


def test_a_singular_matrix_is_refused(tmp_path):
    with pytest.raises(InputError, match="invertible"):
        read_transform(write_transform(tmp_path / "t.json", np.zeros((3, 3))))


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(untrained_weights, tmp_path_factory) -> Path:
    """A network exported by the script, once: tracing it takes half a minute."""
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(export_onnx, patch, "--weights", untrained_weights, "--out", path) == 0
    return path


def test_onnx_runtime_gives_the_same_maps_at_two_sizes(exported, untrained_weights):
    network = load_matcher(untrained_weights)[0].model
    for size in ((64, 96), (136, 80)):
        assert largest_difference(network, "fixed", exported, size) < 1e-4
    session = onnxruntime.InferenceSession(str(exported))
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata == {"size_multiple": "8", "descriptor_stride": "4", "role": "fixed"}
    detector, descriptors = session.run(None, {"image": np.zeros((1, 1, 48, 72), np.float32)})
    assert detector.shape == (1, 1, 48, 72) and descriptors.shape == (1, 16, 12, 18)


def test_the_weights_that_ship_are_exported(tmp_path, monkeypatch):
    weights = DEFAULT_WEIGHTS
    assert (
        run_main(export_onnx, monkeypatch, "--weights", weights, "--out", tmp_path / "shipped.onnx")
        == 0
    )
    network = load_matcher(weights)[0].model
    for size in ((256, 320), (512, 384)):
        assert largest_difference(network, "fixed", tmp_path / "shipped.onnx", size) < 1e-4


def test_another_network_would_be_noticed(exported, untrained_weights):
    network = load_matcher(untrained_weights)[0].model
    with torch.no_grad():
        network.decoder.detector_head.bias += 0.5
    assert largest_difference(network, "fixed", exported, (64, 64)) > 1e-3


@pytest.mark.parametrize(
    "role, arguments",
    [
        ("fixed", {"architecture": "published", "stem": "raw"}),
        ("moving", {"encoders": "dual", "widths": (8, 8, 8), "descriptor_dim": 8}),
    ],
)
def test_the_other_networks_are_exported_too(role, arguments, tmp_path):
    torch.manual_seed(0)
    network = SuperRetinaMultimodal(ModelSettings(**arguments)).eval()
    export(network, role, tmp_path / "network.onnx")
    multiple = network.size_multiple
    for size in ((6 * multiple, 5 * multiple), (4 * multiple, 9 * multiple)):
        assert largest_difference(network, role, tmp_path / "network.onnx", size) < 1e-4


# --- from Python ------------------------------------------------------------------------------------------------------


def test_the_example_runs(generated_root, untrained_weights, tmp_path):
    cf = generated_root / "1_A" / "1_A_cf.png"
    done = subprocess.run(
        [
            sys.executable,
            str(PROJECT / "examples" / "from_python.py"),
            str(cf),
            str(cf),
            "--weights",
            str(untrained_weights),
            "--out",
            "out",
        ],
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
    assert (
        len(result.matches.fixed_points) == result.n_matches
        and result.matches.inliers.sum() == result.n_inliers
    )
    assert result.warp().shape == image.shape and np.abs(result.warp() - image).mean() < 0.03
    assert result.warp(moving[..., 1]).shape == image.shape[:2]
    with pytest.raises(InputError, match="192 x 192.*288 x 288"):
        result.warp(image)
    result.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20000
    with pytest.raises(AttributeError):
        _ = result.nothing_of_this_name


def test_a_failed_result_says_so(generated_root, untrained_weights):
    ramp = np.tile(np.linspace(0.2, 0.8, 96, dtype=np.float32), (80, 1))
    result = Registrar(untrained_weights, device="cpu").register(
        generated_root / "1_A" / "1_A_cf.png", ramp
    )
    assert result.matrix is None and "failed" in repr(result) and math.isfinite(result.seconds)
    with pytest.raises(InputError, match="failed"):
        result.warp()
    assert result.plot().axes and read_gray(generated_root / "1_A" / "1_A_cf.png").ndim == 2
