"""Render an OCT en-face image or an OCTA image of a scene."""

from __future__ import annotations

import cv2
import numpy as np

from synthesis.scene import (
    Scene,
    blur,
    capillary_mesh,
    finish,
    fractal_noise,
    inside,
    radius_map,
    smooth_noise,
    vignette,
)


def render_oct(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render an OCT en-face projection, vessels as dark shadows: (size, size) in [0, 1]."""
    size = scene.size
    level = rng.uniform(0.3, 0.8)
    image = level * (
        1 + 0.12 * scene.background + rng.uniform(0.02, 0.1) * fractal_noise(rng, size, 8)
    )
    image = image * _oct_macula(scene, rng) * _oct_disc(scene, rng)
    widen = rng.uniform(0.4, 2.4) * size / 512
    # A shadow is wider and softer than its vessel; the thinnest vessels have none.
    shadow = np.clip(
        np.maximum(blur(scene.vein, widen), blur(scene.artery, widen) * 0.9)
        * rng.uniform(1.0, 1.5),
        0,
        1,
    )
    shadow = shadow * scene.depth ** rng.uniform(0.1, 0.8)
    image = image * (1 - shadow * rng.uniform(0.22, 0.75))
    image = image * (1 - scene.lesion("haemorrhage") * rng.uniform(0.1, 0.6)) + 0.25 * scene.lesion(
        "exudate"
    )
    image = (
        image
        * _scan_lines(size, rng)
        * (1 + rng.uniform(0, 0.25) * smooth_noise(rng, size, 2)).clip(0.2)
    )
    image = image * vignette(size, rng, rng.uniform(0, 0.8))
    image = image * _signal_loss(size, rng)
    image = blur(image.astype(np.float32), rng.uniform(0, 1.3) * size / 512)
    image = _eye_motion(_speckle(image, rng), rng)
    image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.4)
    image = finish(image.astype(np.float32), rng, rng.uniform(0.003, 0.03), 0.0)
    return image * _scan_square(scene, rng)


def _speckle(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply ``image``, (size, size), by speckle at the sampling of the scan.

    In half of the images it is 1.2 to 2.3 times coarser than the pixels.
    """
    size = image.shape[0]
    samples = size if rng.random() < 0.5 else int(size / rng.uniform(1.2, 2.3))
    coarse = cv2.resize(image, (samples, samples), interpolation=cv2.INTER_AREA)
    grain = rng.standard_normal((samples, samples), dtype=np.float32)
    coarse = coarse * np.clip(
        1 + blur(grain, rng.uniform(0, 0.9)) * rng.uniform(0.06, 0.35), 0, None
    )
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def _eye_motion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift blocks of lines of ``image``, (size, size), sideways by less than one pixel."""
    size = image.shape[0]
    if rng.random() < 0.5:
        return image
    jumps = np.where(rng.random(size) < 0.015, rng.uniform(-0.9, 0.9, size), np.nan)
    jumps[0] = 0.0
    last = np.maximum.accumulate(np.where(np.isnan(jumps), 0, np.arange(size)))
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    return cv2.remap(
        image,
        x + jumps[last][:, None].astype(np.float32),
        y,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _oct_macula(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Brightness factor (size, size) of fovea and parafoveal ring."""
    radius = radius_map(scene.size, scene.fovea, scene.px_per_dd * rng.uniform(0.25, 0.9))
    ring = np.exp(-(((radius - 1.3) / 0.5) ** 2)) * rng.uniform(0, 0.25)
    return 1 + rng.uniform(-0.5, 0.35) * np.exp(-(radius**2)) + ring


def _oct_disc(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Brightness factor (size, size) of the disc: dark, bright, or one or two rings.

    Rings are where the projected slab crosses the slopes of the disc.
    """
    distance = radius_map(scene.size, scene.disc, scene.disc_axes)
    within = inside(distance, 0.16)
    rings = rng.uniform(-0.5, 0.6) * np.exp(-(((distance - 1.1) / 0.12) ** 2))
    rings += rng.uniform(-0.5, 0.5) * np.exp(-(((distance - rng.uniform(0.4, 0.7)) / 0.1) ** 2))
    return np.clip(1 + within * rng.uniform(-0.85, 0.5) + rings, 0.05, None)


def _scan_lines(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, 1) or (1, size) factor: brightness varying along the slow scan axis."""
    rows = 1 + rng.uniform(0.01, 0.08) * rng.standard_normal((size, 1), dtype=np.float32)
    bands = smooth_noise(rng, size, int(rng.integers(4, 40)))[:, :1] * rng.uniform(0, 0.12)
    lines = np.zeros((size, 1), np.float32)
    for _ in range(rng.poisson(2.5)):
        at, thick = rng.integers(size), int(rng.integers(1, max(2, size // 100) + 1))
        lines[at : at + thick] = rng.uniform(-0.5, 0.3)
    factor = np.clip(rows + bands + lines, 0.1, None).astype(np.float32)
    return factor if rng.random() < 0.8 else factor.T


def _signal_loss(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) factor in [0, 1]: signal loss in smooth random patches or towards a side."""
    factor = np.ones((size, size), np.float32)
    if rng.random() < 0.35:
        cloud = np.clip((smooth_noise(rng, size, 3) - rng.uniform(0.8, 1.6)) * 2, 0, 1)
        factor *= 1 - cloud * rng.uniform(0.4, 1)
    if rng.random() < 0.3:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
        along = np.cos(angle) * x + np.sin(angle) * y
        factor *= 1 - np.clip((along - rng.uniform(0.25, 0.5)) * 8, 0, 1) * rng.uniform(0.5, 1)
    return factor


def _scan_square(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(size, size), 0 or 1: the scanned square about fovea or disc, or the whole frame."""
    size = scene.size
    shown = np.zeros((size, size), np.float32)
    if rng.random() < 0.35:
        return shown + 1
    half = size * rng.uniform(0.22, 0.42)
    landmarks = (scene.fovea, scene.disc, (scene.fovea + scene.disc) / 2)
    anchors = [point for point in landmarks if (point > 0).all() and (point < size).all()]
    centre = anchors[rng.integers(len(anchors))] if anchors else np.full(2, size / 2)
    centre = np.clip(centre + rng.normal(0, 0.05, 2) * size, half, size - half)
    x0, y0 = np.rint(centre - half).astype(int)
    x1, y1 = np.rint(centre + half * np.array([1, rng.uniform(0.8, 1)])).astype(int)
    shown[y0:y1, x0:x1] = 1
    return shown


def render_octa(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render an OCT angiogram en face, with a dense capillary mesh: (size, size) in [0, 1]."""
    size = scene.size
    mesh = capillary_mesh(scene, rng) * rng.uniform(0.15, 0.5)
    large = np.maximum(scene.artery, scene.vein) * scene.depth ** rng.uniform(0.2, 0.7)
    large = np.maximum(large, scene.fine * rng.uniform(0.25, 0.7))
    floor = rng.uniform(0.02, 0.15)
    density = np.clip(0.75 + rng.uniform(0.1, 0.5) * smooth_noise(rng, size, 3), 0.1, 1.4)
    outside_fovea = 1 - 0.8 * np.exp(
        -(radius_map(size, scene.fovea, scene.avascular_radius * 1.1) ** 4)
    )
    image = (floor + mesh) * density * outside_fovea
    image = np.maximum(image, large * rng.uniform(0.55, 1.0))
    decorrelation = np.abs(rng.standard_normal((size, size), dtype=np.float32))
    # Noise is correlated along a scan line.
    decorrelation = cv2.GaussianBlur(
        decorrelation, (0, 0), rng.uniform(0.3, 1.8), sigmaY=rng.uniform(0.3, 0.7)
    )
    decorrelation *= 0.8 / decorrelation.mean()
    image = image * (1 - 0.45 * (1 - large)) + image * decorrelation * rng.uniform(0.2, 0.9) * (
        1 - 0.7 * large
    )
    image = image + decorrelation * rng.uniform(0.01, 0.12) * outside_fovea
    image = (
        image
        * _signal_loss(size, rng)
        * (1 + rng.uniform(0, 0.2) * smooth_noise(rng, size, 2)).clip(0.2)
    )
    image = image * _scan_lines(size, rng)
    image = np.clip(image * rng.uniform(0.8, 1.6), 0, 1) ** rng.uniform(0.7, 1.4)
    image = _eye_motion(image.astype(np.float32), rng)
    return finish(image, rng, rng.uniform(0.005, 0.05), rng.uniform(0, 0.9) * size / 512)
