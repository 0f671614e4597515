"""Render a fluorescein angiogram of a scene."""

from __future__ import annotations

import numpy as np

from synthesis.scene import (
    Scene,
    blur,
    capillary_mesh,
    finish,
    fractal_noise,
    radius_map,
    round_field,
    smooth_noise,
    vignette,
)


def render_fa(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a fluorescein angiogram at a random phase: (size, size) float32 in [0, 1]."""
    size = scene.size
    flush = rng.uniform(0.06, 0.45)
    grain = fractal_noise(rng, size, size / (0.12 * scene.px_per_dd), 3)
    image = flush * (1 + 0.15 * scene.background + rng.uniform(0.04, 0.18) * grain)
    image = image * (1 - rng.uniform(0.3, 0.85) * _foveal_shade(scene, rng))
    distance = radius_map(size, scene.disc, scene.disc_axes)
    rim = np.exp(-(((distance - 0.9) / 0.25) ** 2)) * rng.uniform(0, 0.5) - (
        distance < 0.7
    ) * rng.uniform(0, 0.3)
    image = image * (1 + blur(rim.astype(np.float32), 0.05 * scene.px_per_dd))
    image = image * (1 - 0.75 * scene.lesion("non_perfusion")) + _fa_scars(scene, rng) * flush
    image = image + _fa_vessels(scene, flush, rng)
    leak = np.maximum(scene.lesion("leakage"), 0.4 * blur(scene.lesion("drusen"), 1))
    image = image + leak * rng.uniform(0.15, 0.6)
    image = image * (1 - scene.lesion("haemorrhage") * rng.uniform(0.6, 0.95))
    image = (
        image
        * vignette(size, rng, rng.uniform(0.1, 1.2))
        * (1 + rng.uniform(0, 0.2) * smooth_noise(rng, size, 2))
    )
    image = np.clip(image * rng.uniform(0.7, 1.6), 0, 1) ** rng.uniform(0.8, 1.4)
    if rng.random() < 0.15:
        image = image * rng.uniform(0.5, 0.8) + rng.uniform(0.1, 0.3)
    shown = round_field(size, rng, full_frame=0.2)
    outside = rng.uniform(0.2, 0.6) if rng.random() < 0.15 else 0.0
    image = finish(
        image.astype(np.float32), rng, rng.uniform(0.005, 0.04), rng.uniform(0, 1.2) * size / 512
    )
    return image * shown + outside * (1 - shown)


def _foveal_shade(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Share of the choroidal light absorbed by macular pigment: (size, size) in [0, 1]."""
    radius = radius_map(scene.size, scene.fovea, scene.px_per_dd * rng.uniform(0.35, 0.75))
    return np.exp(-((radius * (1 + 0.12 * smooth_noise(rng, scene.size, 12))) ** 2))


def _fa_scars(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Laser scars, (size, size), relative to the choroidal flush: dark, some with bright rims."""
    scar = scene.lesion("laser_scar")
    ring = np.clip(blur(scar, 0.05 * scene.px_per_dd) * 3 * (1 - scar), 0, 1)
    return ring * rng.uniform(0, 0.8) - scar * rng.uniform(0.3, 0.8)


def _fa_vessels(scene: Scene, flush: float, rng: np.random.Generator) -> np.ndarray:
    """Fluorescence of the vessels, (size, size), in a random phase.

    Phases are arterial, laminar venous, full and late.
    """
    phase = rng.choice(("arterial", "laminar", "full", "late"), p=(0.12, 0.14, 0.54, 0.2))
    strength = (
        rng.uniform(0.5, 1.15)
        if rng.random() < 0.6
        else np.exp(rng.uniform(np.log(0.1), np.log(0.6)))
    )
    artery, vein = scene.artery, scene.vein
    if phase == "arterial":
        vein = vein * rng.uniform(0.15, 0.6)
    elif phase == "laminar":
        vein = np.clip(vein - rng.uniform(0.3, 0.8) * scene.vein_core, 0, 1)
    elif phase == "late":
        strength *= rng.uniform(0.35, 0.7)
        artery = artery * rng.uniform(0.6, 1.0)
    else:
        artery = artery * rng.uniform(0.75, 1.05)
    # Vessels fainter than the choroidal texture would be undetectable.
    strength = max(strength, 0.1 + 0.35 * flush)
    dimming = scene.depth ** rng.uniform(0, 0.6)
    glow = np.maximum(np.maximum(artery, vein) * dimming, rng.uniform(0.2, 0.8) * scene.fine)
    around_macula = np.exp(-(radius_map(scene.size, scene.fovea, 2.2 * scene.px_per_dd) ** 2))
    mesh = capillary_mesh(scene, rng) * rng.uniform(0, 0.22) * (0.3 + 0.7 * around_macula)
    glow = glow * (1 - 0.8 * scene.lesion("non_perfusion") * (scene.artery + scene.vein < 0.6))
    # Light scattered in the retina and the lens gives larger vessels a faint halo.
    halo = blur(glow, 0.08 * scene.px_per_dd) * rng.uniform(0, 0.35)
    return strength * np.maximum(glow, mesh) + strength * halo
