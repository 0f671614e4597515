"""Degradations of the moving image: geometry with landmarks, strength, seeds, wrong pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.sets import EvaluationPair, PairLoader, wrong_pairs
from evaluation.stress import (
    CURVES,
    LEVEL_NAMES,
    SIDES,
    UNCHANGED,
    Stress,
    apply_stress,
    crop_box,
    curve,
    hard_set,
    stress_geometry,
)
from geometry.estimation import fit_affine
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import affine_about
from geometry.points import inside, warp_points
from utils.errors import InputError

SPOTS = np.array([[70.0, 62.0], [125.0, 80.0], [90.0, 130.0], [60.0, 110.0], [120.0, 120.0]])


@pytest.fixture(scope="module")
def pair() -> EvaluationPair:
    """A grey disc with a bright spot at each moving landmark; the fixed image is larger."""
    ys, xs = np.indices((190, 180))
    moving = np.where((xs - 92) ** 2 + (ys - 95) ** 2 < 80**2, 0.35, 0.0)
    for x, y in SPOTS:
        moving = moving + 0.55 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 14)
    H_fix_to_mov = affine_about(8, 0.9, 0.0, [110, 100], [92, 95])
    ys, xs = np.indices((210, 220))
    fixed = np.where((xs - 110) ** 2 + (ys - 100) ** 2 < 90**2, 0.4, 0.0)
    return EvaluationPair(
        key="a",
        eye="eye",
        fixed=fixed.astype(np.float32),
        moving=moving.astype(np.float32),
        fixed_landmarks=warp_points(SPOTS, np.linalg.inv(H_fix_to_mov)),
        moving_landmarks=SPOTS,
    )


def spot_centre(image: np.ndarray, near: np.ndarray, reach: float) -> np.ndarray:
    """Intensity centroid (2,) of the spot near a point, pixels (x, y)."""
    ys, xs = np.indices(image.shape)
    close = np.maximum(abs(xs - near[0]), abs(ys - near[1])) < reach
    weight = np.clip(image - 0.5 * (image[close].max() + np.median(image[close])), 0, None) * close
    return np.array([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum()


@pytest.mark.parametrize(
    "stress",
    [
        Stress(rotation=30),
        Stress(rotation=135),
        Stress(scale=0.7),
        Stress(scale=1.4),
        Stress(blur=1.5),
        Stress(overlap=0.6),
        Stress(contrast=0.333),
        Stress(rotation=150, overlap=0.7),
        Stress(rotation=30, scale=1.4, overlap=0.7, contrast=0.5, blur=1.0),
    ],
    ids=Stress.slug,
)
def test_landmarks_stay_on_their_spots(pair, stress):
    stressed = apply_stress(pair, stress)
    seen = [
        i
        for i, point in enumerate(stressed.moving_landmarks)
        if inside(point, stressed.moving.shape, 8.0)
        # A landmark outside of the crop may still be on the rotated canvas.
        and stressed.moving[tuple(np.round(point).astype(int)[::-1])] > 0.2
    ]
    assert len(seen) >= 2
    for index in seen:
        landmark = stressed.moving_landmarks[index]
        assert (
            np.abs(spot_centre(stressed.moving, landmark, 8 * stress.scale) - landmark).max() < 0.35
        )
    assert np.array_equal(stressed.fixed, pair.fixed) and np.array_equal(
        stressed.fixed_landmarks, pair.fixed_landmarks
    )
    # All landmarks are transformed by one affine matrix, those outside of the crop too.
    H = fit_affine(pair.moving_landmarks, stressed.moving_landmarks)
    assert np.abs(warp_points(pair.moving_landmarks, H) - stressed.moving_landmarks).max() < 1e-6
    turn = affine_about(stress.rotation, stress.scale, 0.0, [0, 0], [0, 0])
    assert np.allclose(H[:2, :2], turn[:2, :2], atol=1e-9)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("overlap", [0.5, 0.35, 0.8])
def test_a_crop_leaves_the_given_share_of_the_common_retina(side, overlap):
    common = np.zeros((200, 160), bool)
    common[30:180, 20:150] = True
    left, top, right, bottom = crop_box(common, overlap, side)
    assert common[top:bottom, left:right].sum() / common.sum() == pytest.approx(overlap, abs=0.02)
    cut = {"left": left > 0, "top": top > 0, "right": right < 160, "bottom": bottom < 200}
    assert cut == {name: name == side for name in SIDES}


def test_half_of_the_overlap_is_left(pair):
    stressed = apply_stress(pair, Stress(overlap=0.5))
    H_fix_to_mov = fit_affine(pair.fixed_landmarks, stressed.moving_landmarks)
    ys, xs = np.indices(pair.fixed.shape)
    points = np.stack([xs.ravel(), ys.ravel()], 1)[(pair.fixed > 0.1).ravel()]
    H_before = fit_affine(pair.fixed_landmarks, pair.moving_landmarks)

    def shared(H: np.ndarray, image: np.ndarray) -> int:
        mapped = warp_points(points.astype(float), H)
        mapped = np.round(mapped[inside(mapped, image.shape)]).astype(int)
        return int((image[mapped[:, 1], mapped[:, 0]] > 0.1).sum())

    assert shared(H_fix_to_mov, stressed.moving) / shared(H_before, pair.moving) == pytest.approx(
        0.5, abs=0.03
    )


def test_contrast_noise_and_blur_have_the_given_strength(pair):
    seen = estimate_field_of_view(pair.moving)
    faint = apply_stress(pair, Stress(contrast=0.333)).moving
    assert faint[seen].std() == pytest.approx(0.333 * pair.moving[seen].std(), rel=0.02)
    assert faint[seen].mean() == pytest.approx(pair.moving[seen].mean(), abs=0.01)
    assert faint[0, 0] == 0, "the background stays black"
    flat = replace(pair, moving=np.full((200, 200), 0.5, np.float32))
    noisy = apply_stress(flat, Stress(noise=0.05)).moving
    assert noisy.std() == pytest.approx(0.05, rel=0.03) and noisy.mean() == pytest.approx(
        0.5, abs=0.002
    )
    turned = apply_stress(flat, Stress(noise=0.05, rotation=30)).moving
    assert turned[0, 0] == 0 and turned[110:160, 110:160].std() == pytest.approx(0.05, rel=0.1), (
        "the rotation does not smooth the noise"
    )
    spot = np.zeros((512, 512), np.float32)
    spot[256, 256] = 1.0
    blurred = apply_stress(replace(pair, moving=spot), Stress(blur=3.0)).moving
    ys, xs = np.indices(spot.shape)
    spread = math.sqrt((blurred * (xs - 256) ** 2).sum() / blurred.sum())
    assert spread == pytest.approx(3.0, rel=0.03), "at 512, blur px are pixels"


def test_the_seed_determines_the_image(pair):
    stress = Stress(noise=0.05, overlap=0.5)
    first, second = apply_stress(pair, stress, 1), apply_stress(pair, stress, 1)
    assert np.array_equal(first.moving, second.moving) and first.checksum() == second.checksum()
    assert apply_stress(pair, stress, 2).checksum() != first.checksum()
    assert apply_stress(replace(pair, key="b"), stress, 1).checksum() != first.checksum()
    assert apply_stress(pair, UNCHANGED) is pair


def test_a_rotated_canvas_loses_no_pixel():
    H, size = stress_geometry((100, 160), Stress(rotation=90), (0, 0, 160, 100))
    assert size == (160, 100)
    assert np.allclose(
        sorted(map(tuple, np.round(warp_points(np.array([[0.0, 0.0], [159, 99]]), H), 6))),
        [(0, 159), (99, 0)],
    )
    with pytest.raises(ValueError, match="box"):
        stress_geometry((100, 160), UNCHANGED, (0, 0, 170, 100))


def test_impossible_levels_and_unknown_overlaps_are_refused(pair):
    for levels in (
        {"scale": 0.0},
        {"overlap": 0.0},
        {"overlap": 1.2},
        {"contrast": 0.0},
        {"noise": -0.1},
        {"blur": -1.0},
    ):
        with pytest.raises(InputError, match="impossible"):
            Stress(**levels)
    with pytest.raises(InputError, match="landmarks"):
        apply_stress(
            replace(pair, fixed_landmarks=np.zeros((0, 2)), moving_landmarks=np.zeros((0, 2))),
            Stress(overlap=0.5),
        )


def test_curves_vary_one_level_and_the_hard_set_combines_them():
    assert set(CURVES) == set(LEVEL_NAMES)
    for name in CURVES:
        assert UNCHANGED in curve(name)
        assert all(
            getattr(stress, other) == getattr(UNCHANGED, other)
            for stress in curve(name)
            for other in LEVEL_NAMES
            if other != name
        )
    hard = hard_set()
    assert len(hard) == len(set(hard)) == 5 * 3 + 3 and len(
        {stress.slug() for stress in hard}
    ) == len(hard)
    for rotation in (0, 30, 150):
        assert Stress(rotation=rotation, contrast=0.333, noise=0.05, blur=1.5, overlap=0.5) in hard
        assert Stress(rotation=rotation, overlap=0.5) in hard


def test_wrong_pairs_are_of_different_eyes(pair):
    pairs = [
        replace(pair, key=f"{eye}{index}", eye=eye, moving=pair.moving + 0.001 * index)
        for index, eye in enumerate("aabbc")
    ]
    loaders = [PairLoader(each.key, each.eye, lambda each=each: each) for each in pairs]
    chosen = [load() for load in wrong_pairs(loaders, 7, seed=3)]
    assert len({each.key for each in chosen}) == 7 and all(
        not len(each.fixed_landmarks) for each in chosen
    )
    for each in chosen:
        fixed, moving = each.key.split("__with__")
        assert fixed[0] == each.eye != moving[0]
    assert [each.key for each in chosen] == [load().key for load in wrong_pairs(loaders, 7, seed=3)]
    assert len(wrong_pairs(loaders, 1000, seed=3)) == 5 * 5 - (4 + 4 + 1), "as many as there are"
    with pytest.raises(InputError, match="one eye"):
        wrong_pairs(loaders[:2], 3, seed=0)
