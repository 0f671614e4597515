"""Local matches, robust fits of displacement models, and their cross-validation."""

from __future__ import annotations

import numpy as np

from geometry.curved_transforms import DeformableTransform, unit_frame
from geometry.transforms import MatrixTransform
from registration.curved_refinement import CURVED
from registration.displacement_fits import (
    Basis,
    blocks_across,
    fit_displacement,
    gain_of,
    held_out_residuals,
    robust_weights,
)
from registration.displacement_models import (
    Lattice,
    affine_basis,
    quadratic_basis,
    quadratic_transform,
)
from registration.patches import LocalMatches, find_peaks, strongest_in_cells

SIZE = (400, 440)


def test_peaks_are_located_with_subpixel_accuracy():
    y, x = np.mgrid[-5:6, -5:6].astype(float)
    places = np.array([[1.3, -2.2], [0.0, 0.4], [-3.1, 3.45]])
    surfaces = np.stack([0.9 - 0.02 * (x - px) ** 2 - 0.05 * (y - py) ** 2 for px, py in places])
    beside = np.stack(
        [
            0.9 - 0.01 * (x - 7) ** 2 - 0.01 * y**2,
            np.zeros_like(x),
            np.full_like(x, np.nan),
            0.2 - 0.02 * (x**2 + y**2),
        ]
    )
    kept, displacements, information = find_peaks(
        np.concatenate([surfaces, beside]).astype(np.float32)
    )
    assert kept.tolist() == [0, 1, 2] and np.abs(displacements - places).max() < 0.01
    assert np.allclose(information[:, 1, 1] / information[:, 0, 0], 2.5, rtol=0.02)
    assert np.allclose(information[:, 0, 1], 0, atol=0.01)


def test_one_point_per_cell():
    strength = np.zeros((66, 77), np.float32)
    strength[30, 40], strength[31, 41], strength[50, 20], strength[2, 2] = 1.0, 0.9, 0.8, 5.0
    assert sorted(map(tuple, strongest_in_cells(strength, 5))) in (
        [(40, 30)],
        [(20, 50), (40, 30)],
    )
    assert len(strongest_in_cells(np.zeros((66, 77), np.float32), 5)) == 0


def scattered(n=300, wrong=0.3, seed=0):
    """Matches of a quadratic displacement with noise of 0.3 px, a share of them outliers."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([0, 0], [SIZE[1], SIZE[0]], (n, 2))
    u, v = ((points - [220, 200]) / 200).T
    displacements = np.stack([1 + 3 * u * v - v**2, 2 * u**2 - 1.5 * v], axis=1) + rng.normal(
        0, 0.3, (n, 2)
    )
    bad = rng.random(n) < wrong
    displacements[bad] = rng.uniform(-12, 12, (int(bad.sum()), 2))
    return LocalMatches(points, displacements, np.tile(np.eye(2), (n, 1, 1))), bad


def test_robust_fit_rejects_outliers():
    matches, bad = scattered()
    H = unit_frame(matches.points)
    basis = quadratic_basis(matches.points, H)
    weights = robust_weights(basis, matches)
    coefficients = fit_displacement(basis, matches, weights)
    left = np.linalg.norm(basis.design @ coefficients - matches.displacements, axis=1)
    assert left[~bad].mean() < 0.5 and weights[bad].mean() < 0.1 < 0.8 < weights[~bad].mean()
    transform = quadratic_transform(np.eye(3), H, coefficients)
    assert np.allclose(
        transform.map(matches.points[:9]),
        matches.points[:9] + (basis.design @ coefficients)[:9],
        atol=1e-8,
    )


def test_cross_validation_distinguishes_curvature_from_noise():
    matches, _ = scattered(wrong=0.1)
    noise = np.random.default_rng(1).normal(0, 0.7, matches.displacements.shape)
    blocks = blocks_across(matches.points)
    quadratic = quadratic_basis(matches.points, unit_frame(matches.points))
    for displacements, real in ((matches.displacements, True), (noise, False)):
        current = matches._replace(displacements=displacements)
        held_out = [
            held_out_residuals(each, current, robust_weights(each, current), blocks)
            for each in (affine_basis(matches.points), quadratic)
        ]
        share, significance = gain_of(*held_out, blocks)
        assert (
            (share > 0.3 and significance > 3)
            if real
            else (share < CURVED.min_gain or significance < CURVED.min_gain_significance)
        )


def test_lattice_fits_a_displacement_and_stiffness_smooths_it():
    rng = np.random.default_rng(2)
    points = rng.uniform([0, 0], [SIZE[1], SIZE[0]], (500, 2))
    true = np.stack([2 * np.sin(points[:, 0] / 60), 2 * np.cos(points[:, 1] / 70)], axis=1)
    matches = LocalMatches(points, true, np.tile(np.eye(2), (500, 1, 1)))
    lattice, left = Lattice.over(SIZE), []
    for stiffness in (0.01, 1e4):
        basis = Basis(lattice.design(points), stiffness * lattice.bending())
        controls = lattice.controls(fit_displacement(basis, matches, np.ones(500)))
        transform = DeformableTransform(
            MatrixTransform(np.eye(3)), lattice.H_fixed_to_lattice, controls
        )
        assert np.allclose(
            transform.displacement(points),
            basis.design @ controls[2:-2, 2:-2].reshape(-1, 2),
            atol=1e-9,
        )
        left.append(np.abs(transform.displacement(points) - true).max())
    assert left[0] < 0.2 and left[1] > 1.0
