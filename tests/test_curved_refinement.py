"""Curved transforms are chosen where held-out patches support them, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from curved_pairs import make_affine_pair, make_curved_pair, mean_error

from geometry.curved_transforms import DeformableTransform
from geometry.estimation import fit_affine
from geometry.points import pixel_grid, warp_points
from geometry.transforms import MatrixTransform
from registration.curved_refinement import choose_richer
from registration.displacement_fits import Gain
from registration.displacement_models import Lattice
from registration.transform_choice import choose_transform

SIZE = (400, 440)


@pytest.fixture(scope="module")
def curved():
    """A pair whose transform is far from affine."""
    return make_curved_pair()


@pytest.fixture(scope="module")
def flat():
    """Ridge maps of a pair with an affine transform, and its matrix."""
    return make_affine_pair(make_curved_pair().fixed)


@pytest.mark.parametrize("requested", ["quadratic", "deformable", "auto"])
def test_two_gaze_directions_need_a_curved_transform(curved, requested):
    H = fit_affine(curved.fixed_points, curved.moving_points)
    choice = choose_transform(curved.ridges, H, requested)
    assert choice.transform.kind in ("quadratic", "deformable") and "saves" in choice.reason
    landmarks = curved.fixed_points, curved.moving_points
    affine_error = mean_error(MatrixTransform(H), *landmarks)
    assert mean_error(choice.transform, *landmarks) < 0.5 * affine_error
    assert choice.transform.least_jacobian(curved.fixed.shape) > 0


@pytest.mark.parametrize("requested", ["quadratic", "deformable", "auto"])
def test_an_affine_pair_stays_affine(flat, requested):
    ridges, H = flat
    choice = choose_transform(ridges, H, requested)
    points = pixel_grid((512, 512)).double().numpy()[::501]
    assert np.linalg.norm(choice.transform.map(points) - warp_points(points, H), axis=1).max() < 0.1
    assert choice.transform.kind == "affine" and "too little" in choice.reason


def test_a_transform_near_folding_is_notchoose_richer():
    gain = Gain(share=0.9, significance=10.0)
    lattice = Lattice.over(SIZE)
    controls = np.zeros((*lattice.shape, 2))
    for size, kept in ((1.0, "deformable"), (80.0, "affine")):
        controls[2:-2, 2:-2] = size * np.random.default_rng(0).standard_normal(
            (lattice.shape[0] - 4, lattice.shape[1] - 4, 2)
        )
        rich = DeformableTransform(MatrixTransform(np.eye(3)), lattice.H_fixed_to_lattice, controls)
        choice = choose_richer(MatrixTransform(np.eye(3)), rich, gain, SIZE)
        assert choice.transform.kind == kept and ("folding" in choice.reason) == (kept == "affine")
