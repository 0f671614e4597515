"""Metrics: known values, and failures that count in each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.metrics import aggregate, area_under_curve, median_with_failures
from geometry.accuracy import FAILED, PairError, corner_error, pair_error
from geometry.matrices import affine_about, translation_matrix
from geometry.points import image_corners, warp_points

HIGHER_IS_BETTER = ("success_median5", "SR_ME", "SR_MAE", "AUC@5", "AUC@10", "AUC@20", "mAUC")
LOWER_IS_BETTER = ("failed_rate", "median_of_medians")
POINTS = np.array([[10.0, 20.0], [100.0, 30.0], [50.0, 80.0], [70.0, 60.0]])


@pytest.mark.parametrize(
    "moving_size, factor", [((300, 1024), 0.5), ((1024, 300), 0.5), ((128, 256), 2.0)]
)
def test_errors_are_pixels_of_the_moving_image_at_512(moving_size, factor):
    shifts = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0], [0.0, 12.0]])
    error = pair_error(np.eye(3), POINTS, POINTS + shifts, moving_size)
    assert error.mean == pytest.approx(5.0 * factor)
    assert error.median == pytest.approx(3.5 * factor)
    assert error.max == pytest.approx(12.0 * factor)


def test_landmarks_go_from_fixed_to_moving():
    H = affine_about(40, 1.5, 0.1, [10, 20], [200, 90])
    assert pair_error(H, POINTS, warp_points(POINTS, H), (400, 300)).max == pytest.approx(
        0, abs=1e-9
    )
    assert pair_error(np.linalg.inv(H), POINTS, warp_points(POINTS, H), (400, 300)).mean > 10


def test_corner_error_of_a_shift_is_the_shift():
    H = affine_about(15, 1.1, 0, [60, 40], [50, 70])
    shifted = translation_matrix([3, 4]) @ H
    assert corner_error(shifted, H, (90, 130), (256, 200)) == pytest.approx(10.0)
    assert corner_error(None, H, (90, 130), (256, 200)) == math.inf
    assert np.array_equal(image_corners((90, 130)), [[0, 0], [129, 0], [129, 89], [0, 89]])


def test_a_failed_pair_is_infinite_in_every_error():
    assert pair_error(None, POINTS, POINTS, (100, 100)) == FAILED
    assert all(value == math.inf for value in (FAILED.mean, FAILED.median, FAILED.max))


def test_failing_on_half_is_worse_in_every_aggregate_than_being_mediocre_on_all():
    mediocre = aggregate([PairError(4.0, 4.0, 8.0)] * 10)
    half_failed = aggregate([PairError(3.5, 3.5, 7.0)] * 5 + [FAILED] * 5)
    assert set(mediocre) == {"pairs", *HIGHER_IS_BETTER, *LOWER_IS_BETTER}
    for name in HIGHER_IS_BETTER:
        assert half_failed[name] < mediocre[name], name
    for name in LOWER_IS_BETTER:
        assert half_failed[name] > mediocre[name], name
    assert half_failed["median_of_medians"] == math.inf and half_failed["failed_rate"] == 0.5


def test_all_failed_and_all_perfect():
    failed, perfect = aggregate([FAILED] * 3), aggregate([PairError(0.0, 0.0, 0.0)] * 3)
    for name in HIGHER_IS_BETTER:
        assert failed[name] == 0.0 and perfect[name] == 1.0, name
    assert failed["failed_rate"] == 1.0 and perfect["failed_rate"] == 0.0


def test_known_aggregates():
    result = aggregate(
        [PairError(2.0, 1.0, 9.0), PairError(6.0, 4.9, 11.0), PairError(20.0, 5.0, 40.0), FAILED]
    )
    assert result["pairs"] == 4 and result["success_median5"] == 0.5, (
        "median error below 5, strictly"
    )
    assert result["SR_ME"] == 0.25 and result["SR_MAE"] == 0.25
    assert result["AUC@10"] == pytest.approx((0.8 + 0.4) / 4)
    # Mean errors 2, 6 and 20 are below i for 23, 19 and 5 of i = 1..25.
    assert result["mAUC"] == pytest.approx((23 + 19 + 5) / 25 / 4)
    assert result["median_of_medians"] == pytest.approx(4.95)


def test_area_under_the_curve_equals_its_integral():
    errors = np.array([0.0, 1.0, 2.5, 7.0, 30.0, math.inf])
    limits = np.linspace(0, 10, 20001)
    share = (errors[None] <= limits[:, None]).mean(1)
    assert area_under_curve(errors, 10.0) == pytest.approx(share.mean(), abs=1e-3)
    assert (
        area_under_curve(np.zeros(3), 5) == 1.0 and area_under_curve(np.array([math.inf]), 5) == 0.0
    )


def test_median_counts_failures():
    assert median_with_failures([1, 2, math.inf]) == 2
    assert median_with_failures([1, 3]) == 2
    assert median_with_failures([1, 3, math.inf, math.inf]) == math.inf


def test_bootstrap_interval_contains_the_rate_and_resamples_eyes():
    pairs = [PairError(1, 1, 1)] * 7 + [FAILED] * 5
    by_pair = aggregate(pairs, [str(i) for i in range(12)])
    assert (
        by_pair["success_median5_low"]
        < by_pair["success_median5"]
        < by_pair["success_median5_high"]
    )
    assert by_pair == aggregate(pairs, [str(i) for i in range(12)]), "seeded"
    # Two eyes, one without and one with failures only: the interval must be [0, 1].
    by_eye = aggregate(pairs, ["a"] * 7 + ["b"] * 5)
    assert (by_eye["success_median5_low"], by_eye["success_median5_high"]) == (0.0, 1.0)
