"""Lesions of a synthesised eye: their places and radii, and their rasterisation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from synthesis.scene import smooth_noise
from synthesis.vessel_drawing import Projection


class LesionPlan(NamedTuple):
    """How lesions of one kind are drawn; all values chosen by hand.

    Attributes:
        probability: that an eye has any.
        mean_count: mean number of further lesions (Poisson).
        smallest_dd, largest_dd: range of the radii, uniform in the logarithm, disc diameters.
        spread_dd: standard deviation of the places about their common focus, disc diameters.
        softness: width of the edge, in units of coverage.
    """

    probability: float
    mean_count: float
    smallest_dd: float
    largest_dd: float
    spread_dd: float = 1.5
    softness: float = 0.12


LESION_PLANS = {
    "haemorrhage": LesionPlan(0.3, mean_count=6, smallest_dd=0.03, largest_dd=0.45),
    "exudate": LesionPlan(0.25, mean_count=25, smallest_dd=0.015, largest_dd=0.08, spread_dd=0.7),
    "cotton_wool": LesionPlan(0.15, mean_count=3, smallest_dd=0.08, largest_dd=0.2, softness=0.5),
    "drusen": LesionPlan(0.2, mean_count=40, smallest_dd=0.015, largest_dd=0.06, spread_dd=0.8),
    "laser_scar": LesionPlan(0.1, mean_count=120, smallest_dd=0.06, largest_dd=0.1, spread_dd=2.6),
    "non_perfusion": LesionPlan(0.15, mean_count=3, smallest_dd=0.4, largest_dd=1.3, softness=0.2),
    "leakage": LesionPlan(0.2, mean_count=5, smallest_dd=0.05, largest_dd=0.5, softness=0.5),
}


def draw_lesions(fovea: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the lesions of one visit.

    Args:
        fovea: (2,) retina point, disc diameters.
        rng: of the draws.

    Returns:
        Kind of ``LESION_PLANS`` to (n, 3) x, y, radius in disc diameters; kinds may be absent.
    """
    spots = {}
    for kind, plan in LESION_PLANS.items():
        if rng.random() > plan.probability:
            continue
        n = 1 + rng.poisson(plan.mean_count)
        focus = fovea * rng.uniform(0, 1.2) + rng.normal(0, 1.0, 2)
        places = focus + rng.normal(0, plan.spread_dd, (n, 2))
        radii = np.exp(rng.uniform(np.log(plan.smallest_dd), np.log(plan.largest_dd), n))
        away = np.linalg.norm(places, axis=1) > 0.8
        if kind == "laser_scar":
            away &= np.linalg.norm(places - fovea, axis=1) > 1.2
        spots[kind] = np.column_stack([places, radii])[away]
    return spots


def rasterise_lesions(
    spots: dict[str, np.ndarray], view: Projection, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Rasterise lesions with irregular edges.

    Args:
        spots: from :func:`draw_lesions`.
        view: projection of the retina into the image.
        rng: draws the shapes.

    Returns:
        Kind to (size, size) float32 coverage in [0, 1].
    """
    layers = {}
    for kind, table in spots.items():
        canvas = np.zeros((view.size, view.size), np.float32)
        softness = LESION_PLANS[kind].softness
        for (x, y), radius in zip(
            view.to_pixels(table[:, :2]), table[:, 2] * view.px_per_dd, strict=True
        ):
            reach = int(2 * radius) + 3
            x0, y0 = max(int(x) - reach, 0), max(int(y) - reach, 0)
            patch = canvas[y0 : max(int(y) + reach, 0), x0 : max(int(x) + reach, 0)]
            if patch.size == 0:
                continue
            rows, cols = np.ogrid[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]]
            distance = (
                np.hypot((cols - x) * rng.uniform(0.7, 1.3), (rows - y) * rng.uniform(0.7, 1.3))
                / radius
            )
            np.maximum(patch, np.clip((1.3 - distance) / 0.6, 0, 1), out=patch)
        ragged = canvas + 0.22 * smooth_noise(rng, view.size, view.size / (0.12 * view.px_per_dd))
        layers[kind] = np.clip((ragged - 0.5) / (2 * softness) + 0.5, 0, 1).astype(np.float32) * (
            canvas > 0
        )
    return layers
