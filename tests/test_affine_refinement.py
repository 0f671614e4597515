"""Refinement of an affine matrix on the ridge maps."""

from __future__ import annotations

import numpy as np
import pytest
from curved_pairs import make_affine_pair, make_curved_pair

from geometry.matrices import affine_about, compose, translation_matrix
from geometry.points import warp_points
from geometry.transforms import MatrixTransform
from registration import affine_refinement
from registration.affine_refinement import refine_affine
from registration.curved_refinement import estimate_beyond_affine
from registration.ridges import RidgePair
from registration.working_frame import to_working_frame


@pytest.fixture(scope="module")
def flat():
    """Ridge maps of a pair with an affine transform, and its matrix."""
    return make_affine_pair(make_curved_pair().fixed)


@pytest.mark.parametrize("turn_deg, scale", [(1.2, 1.015), (3.0, 1.03)])
def test_refinement_converges_from_further_away_than_one_pass_of_ecc(flat, turn_deg, scale):
    ridges, H = flat
    frames = [image.frame.H_image_to_working for image in ridges.images]
    rough = compose(
        np.linalg.inv(frames[0]),
        affine_about(turn_deg, scale, 0.01, (200, 300), (206.0, 296.0)) @ H,
        frames[1],
    )
    true = compose(np.linalg.inv(frames[0]), H, frames[1])
    corners = np.array([[60.0, 60], [450, 60], [450, 450], [60, 450]])

    def off(matrix):
        return np.linalg.norm(
            warp_points(corners, matrix) - warp_points(corners, true), axis=1
        ).max()

    assert off(ridges.refine(rough, "affine")) > 5 and off(refine_affine(ridges, rough)) < 0.3
    assert off(refine_affine(ridges, true)) < 0.2, "the right matrix is kept"


class ScriptedRidges:
    """Replaces a pair of ridge maps.

    ECC moves a matrix by ``step`` px along x, or by 30 px on blurred maps. The agreement of a
    matrix is looked up by its translation along x.
    """

    def __init__(self, agreements, step=0.0):
        self.agreements, self.step, self.fixed_size = agreements, step, (100, 120)

    def refine(self, H, transform, blur_px=1, min_gain=0.0, max_correction_px=0.0):
        return compose(
            H,
            translation_matrix((self.step if min_gain else 0.0 if blur_px == 1 else 30.0, 0.0)),
        )

    def agreement(self, H):
        return self.agreements[round(float(H[0, 2]), 1)]


BELOW_OTHER_EYES = {0.0: 1.0, 10.0: 4.9}
SECOND_STEP_GAINS_TOO_LITTLE = {0.0: 1.0, 10.0: 5.0, 20.0: 5.04, 40.0: 5.0}
ONLY_BLURRED_MAPS_HELP = {0.0: 4.0, 10.0: 3.0, 30.0: 6.0, 40.0: 5.0, 60.0: 6.0}
FINAL_ECC_LOSES_LITTLE = {0.0: 6.0, 10.0: 5.0, 30.0: 5.0, 16.0: 5.8}
FINAL_ECC_LOSES_TOO_MUCH = {0.0: 6.0, 10.0: 5.0, 30.0: 5.0, 16.0: 5.7}


@pytest.mark.parametrize(
    "agreements, step, expected",
    [
        (BELOW_OTHER_EYES, 0.0, 0.0),
        (SECOND_STEP_GAINS_TOO_LITTLE, 0.0, 10.0),
        (ONLY_BLURRED_MAPS_HELP, 0.0, 30.0),
        (FINAL_ECC_LOSES_LITTLE, 2.0, 16.0),
        (FINAL_ECC_LOSES_TOO_MUCH, 2.0, 0.0),
    ],
)
def test_steps_are_accepted_where_the_agreement_rises(monkeypatch, agreements, step, expected):
    monkeypatch.setattr(
        affine_refinement,
        "fit_patches",
        lambda ridges, H: compose(H, translation_matrix((10.0, 0.0))),
    )
    assert refine_affine(ScriptedRidges(agreements, step), np.eye(3))[0, 2] == pytest.approx(
        expected
    )


def test_a_matrix_of_unrelated_images_is_kept():
    rng = np.random.default_rng(0)
    images = [
        np.clip(0.5 + 0.1 * rng.standard_normal((300, 300)), 0, 1).astype(np.float32)
        for _ in range(2)
    ]
    images.append(np.full((300, 300), 0.5, np.float32))
    for moving in images[1:]:
        ridges = RidgePair(*(to_working_frame(each, 256) for each in (images[0], moving)))
        H = affine_about(30.0, 1.0, 0.0, (128, 128), (128, 128))
        choice = estimate_beyond_affine(ridges, H, "auto")
        assert isinstance(choice.transform, MatrixTransform) and np.array_equal(
            choice.transform.H_fix_to_mov, H
        )
        assert "affine" in choice.reason and np.array_equal(
            refine_affine(ridges, H), ridges.refine(H, "affine")
        )
