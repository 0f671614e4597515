"""Lesions of a synthesised eye: where they lie, and their ragged shapes."""

from __future__ import annotations

import numpy as np

from synthesis.scene import smooth_noise
from synthesis.vessel_drawing import View

LESION_PLANS = {  # kind: (probability, mean count, smallest and largest radius in disc diameters)
    "haemorrhage": (0.3, 6, 0.03, 0.45),
    "exudate": (0.25, 25, 0.015, 0.08),
    "cotton_wool": (0.15, 3, 0.08, 0.2),
    "drusen": (0.2, 40, 0.015, 0.06),
    "laser_scar": (0.1, 120, 0.06, 0.1),
    "non_perfusion": (0.15, 3, 0.4, 1.3),
    "leakage": (0.2, 5, 0.05, 0.5),
}


def draw_lesions(fovea: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Lesions of one visit: kind to (n, 3) x, y, radius in disc diameters, in the retina frame."""
    spots = {}
    for kind, (probability, count, smallest, largest) in LESION_PLANS.items():
        if rng.random() > probability:
            continue
        n = 1 + rng.poisson(count)
        focus = fovea * rng.uniform(0, 1.2) + rng.normal(0, 1.0, 2)
        spread = {"laser_scar": 2.6, "drusen": 0.8, "exudate": 0.7}.get(kind, 1.5)
        places = focus + rng.normal(0, spread, (n, 2))
        radii = np.exp(rng.uniform(np.log(smallest), np.log(largest), n))
        away = np.linalg.norm(places, axis=1) > 0.8
        if kind == "laser_scar":
            away &= np.linalg.norm(places - fovea, axis=1) > 1.2
        spots[kind] = np.column_stack([places, radii])[away]
    return spots


def rasterise_lesions(
    spots: dict[str, np.ndarray], view: View, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Paint lesions with ragged edges. Returns kind to (size, size) float32 coverage."""
    layers = {}
    for kind, table in spots.items():
        canvas = np.zeros((view.size, view.size), np.float32)
        softness = {"leakage": 0.5, "cotton_wool": 0.5, "non_perfusion": 0.2}.get(kind, 0.12)
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
