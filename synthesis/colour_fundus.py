"""Render a colour fundus photograph of a scene."""

from __future__ import annotations

import numpy as np

from synthesis.scene import (
    Scene,
    blur,
    finish,
    fractal_noise,
    inside,
    radius_map,
    smooth_noise,
    vignette,
)

# Background colours (RGB in [0, 1]) of which a random mixture is taken; chosen by hand.
FUNDUS_COLOURS = np.array(
    [
        (0.85, 0.33, 0.12),
        (0.80, 0.50, 0.45),
        (0.50, 0.28, 0.13),
        (0.80, 0.58, 0.30),
        (0.36, 0.19, 0.08),
        (0.80, 0.22, 0.14),
        (0.95, 0.45, 0.08),
    ],
    np.float32,
)


def render_cf(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a colour photograph: (size, size, 3) RGB float32 in [0, 1]."""
    size = scene.size
    weights = rng.dirichlet(np.full(len(FUNDUS_COLOURS), 0.35)).astype(np.float32)
    colour = weights @ FUNDUS_COLOURS * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    light = 1 + 0.08 * scene.background + rng.uniform(0.01, 0.05) * fractal_noise(rng, size, 10)
    light += rng.uniform(0.005, 0.03) * smooth_noise(rng, size, size / (0.06 * scene.px_per_dd))
    image = light[..., None] * colour
    image = _tigroid(image, scene, rng)
    image = _macula_and_disc(image, scene, rng)
    image = _cf_lesions_below(image, scene)
    image = _cf_vessels(image, scene, rng)
    blood = scene.lesion("haemorrhage")[..., None] * rng.uniform(0.5, 0.95)
    image = image * (1 - blood * np.array((0.55, 0.85, 0.8), np.float32))
    image *= vignette(size, rng, rng.uniform(0.1, 0.9))[..., None]
    image = _haze(image, rng) * rng.uniform(0.75, 1.15)
    image = np.clip(image, 0, 1) ** rng.uniform(0.8, 1.25)
    image = finish(
        image.astype(np.float32), rng, rng.uniform(0.001, 0.01), rng.uniform(0, 1.4) * size / 512
    )
    return image * scene.field[..., None]


def _tigroid(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Add visible choroidal vessels: broad pale bands in patches; ``image`` is (size, size, 3)."""
    if rng.random() > 0.35:
        return image
    cells = scene.size / (0.35 * scene.px_per_dd)
    bands = np.exp(-((smooth_noise(rng, scene.size, cells) / 0.6) ** 2))
    patch = np.clip(smooth_noise(rng, scene.size, 3) * 0.5 + 0.4, 0, 1)
    return image * (
        1
        + rng.uniform(0.04, 0.2)
        * (bands * patch)[..., None]
        * np.array((0.6, 1.0, 0.7), np.float32)
    )


def _macula_and_disc(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Darken the macula and draw disc, cup and, in some eyes, a crescent on (size, size, 3)."""
    radius = radius_map(scene.size, scene.fovea, scene.px_per_dd * rng.uniform(0.45, 0.8))
    dark = rng.uniform(0.1, 0.5) * np.exp(-(radius**2)) + rng.uniform(0, 0.15) * np.exp(
        -((radius / 0.4) ** 2)
    )
    image = image * (1 - dark[..., None] * np.array((0.7, 1.0, 0.9), np.float32))
    distance = radius_map(scene.size, scene.disc, scene.disc_axes)
    edge = rng.uniform(0.03, 0.12)
    disc = inside(distance, edge)
    cup_at = scene.disc + rng.normal(0, 0.08, 2) * scene.px_per_dd
    cup = inside(radius_map(scene.size, cup_at, scene.disc_axes * rng.uniform(0.3, 0.7)), 0.24)
    if rng.random() < 0.3:
        crescent = np.exp(-(((distance - 1.15) / 0.12) ** 2)) * rng.uniform(-0.3, 0.3)
        image = image * (1 + crescent[..., None])
    bright = image.mean() * rng.uniform(1.5, 2.6)
    tint = np.array((1.25, rng.uniform(0.75, 1.0), rng.uniform(0.4, 0.8)), np.float32)
    rim = image * 0.35 + 0.65 * bright * tint
    image = image + disc[..., None] * (rim - image)
    return image + (disc * cup)[..., None] * rng.uniform(0.05, 0.3) * np.array(
        (1, 0.95, 0.75), np.float32
    )


def _cf_lesions_below(image: np.ndarray, scene: Scene) -> np.ndarray:
    """Draw the lesions that lie below the vessels on ``image``, (size, size, 3)."""
    scale = float(image.mean())
    for kind, tint in (
        ("exudate", (2.7, 2.2, 0.9)),
        ("cotton_wool", (2.3, 1.7, 1.1)),
        ("drusen", (2.1, 1.5, 0.6)),
    ):
        cover = scene.lesion(kind)[..., None] * 0.7
        image = image * (1 - cover) + cover * scale * np.array(tint, np.float32)
    scar = scene.lesion("laser_scar")
    ring = np.clip(blur(scar, 0.04 * scene.px_per_dd) * 4 * (1 - scar), 0, 1)
    return image * (1 + 0.3 * scar - 0.25 * ring)[..., None]


def _cf_vessels(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw vessels on ``image``, (size, size, 3), as absorption by blood.

    Green and blue are absorbed more than red. Arteries are paler and have a central reflex.
    """
    contrast = np.exp(rng.uniform(np.log(0.25), np.log(0.95)))
    soft = rng.uniform(0, 0.9) * scene.size / 512
    absorb = (
        np.maximum(blur(scene.artery, soft) * rng.uniform(0.55, 0.9), blur(scene.vein, soft))
        * contrast
    )
    absorb = absorb * scene.depth ** rng.uniform(0.1, 0.8)
    spectrum = np.array((rng.uniform(0.15, 0.5), 1.0, rng.uniform(0.6, 0.9)), np.float32)
    image = image * np.exp(-absorb[..., None] * spectrum)
    reflex = scene.artery_core * rng.uniform(0, 0.35) + scene.vein_core * rng.uniform(0, 0.08)
    return image * (1 + (contrast * reflex)[..., None])


def _haze(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add uneven light, scattered light and reflections of the inner limiting membrane.

    ``image`` and the result are (size, size, 3).
    """
    size = image.shape[0]
    image = image * (1 + rng.uniform(0, 0.25) * smooth_noise(rng, size, 2)).clip(0.3)[..., None]
    if rng.random() < 0.4:
        veil = np.clip(0.5 + 0.5 * smooth_noise(rng, size, 2), 0, 1) * rng.uniform(0.02, 0.2)
        image = image + veil[..., None] * rng.uniform(0.6, 1, 3).astype(np.float32)
    if rng.random() < 0.1:
        sheen = np.clip(smooth_noise(rng, size, 6) - 0.8, 0, 1) * rng.uniform(0.03, 0.12)
        image = image + sheen[..., None]
    return image
