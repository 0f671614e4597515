"""Photometric domain randomisation: changes the grey values of an image, not its geometry.

The two images of a pair are randomised independently, so that a network learns from the vessels
rather than from brightness, noise or field of view. Each effect models one of real cameras; its
probability and range are in :class:`PhotometricRanges`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from geometry.matrices import Size, size_of_image


@dataclass(frozen=True)
class PhotometricRanges:
    """Probabilities and ranges of the effects.

    Probabilities are in [0, 1]; strengths in units of an image in [0, 1] unless a unit is given.

    Attributes:
        p_apply: share of the images that are changed at all.
        min_contrast: contrast of the faintest image relative to the original.
        max_gamma: gamma is drawn from [1 / max_gamma, max_gamma].
        max_noise: standard deviation of additive noise.
        max_speckle: standard deviation of multiplicative noise.
        max_blur_px: largest standard deviation of the defocus, pixels.
        shading: largest amplitude of uneven illumination, relative to the image.
        p_invert: share of negatives (bright vessels become dark).
        p_banding: share with horizontal stripes, an artefact of scanning devices.
        p_patches: share with dark or bright blobs (haemorrhage, leakage, signal loss).
        p_new_field: share that gets a smaller field of view, round or rectangular.
    """

    p_apply: float = 0.5
    min_contrast: float = 0.4
    max_gamma: float = 2.0
    max_noise: float = 0.03
    max_speckle: float = 0.12
    max_blur_px: float = 1.6
    shading: float = 0.4
    p_invert: float = 0.1
    p_banding: float = 0.15
    p_patches: float = 0.2
    p_new_field: float = 0.25


def smooth_field(size: Size, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field, (H, W) float32 in [-1, 1].

    Args:
        size: (height, width), pixels.
        cells: about the number of oscillations across the image.
        rng: of the draws.
    """
    coarse = rng.uniform(-1.0, 1.0, (cells + 1, cells + 1)).astype(np.float32)
    return np.clip(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), -1.0, 1.0)


def _light(image: np.ndarray, ranges: PhotometricRanges, rng: np.random.Generator) -> np.ndarray:
    """Gamma, contrast, brightness and uneven illumination of an image (H, W)."""
    # Warping and inversion leave values a rounding error below 0, whose power would be NaN.
    image = np.clip(image, 0.0, 1.0) ** np.exp(rng.uniform(-1.0, 1.0) * np.log(ranges.max_gamma))
    mean = float(image.mean())
    image = mean + (image - mean) * rng.uniform(ranges.min_contrast, 1.2)
    shading = rng.uniform(0.0, ranges.shading)
    cells = int(rng.integers(1, 4))
    image = image * (1.0 + shading * smooth_field(size_of_image(image), cells, rng))
    return image * rng.uniform(0.6, 1.3)


def _patches(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover an image (H, W) in part with dark or bright blobs."""
    height, width = image.shape
    cover = np.zeros(image.shape, dtype=np.float32)
    for _ in range(int(rng.integers(1, 5))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = rng.uniform(0.03, 0.14, 2) * max(height, width)
        cv2.ellipse(
            cover,
            centre,
            (int(axes[0]), int(axes[1])),
            float(rng.uniform(0, 180)),
            0,
            360,
            float(rng.uniform(0.4, 1.0)),
            -1,
        )
    soft = cv2.GaussianBlur(cover, (0, 0), rng.uniform(1.0, 6.0))
    return image * (1.0 - soft) + soft * rng.uniform(0.0, 1.0)


def _sensor(image: np.ndarray, ranges: PhotometricRanges, rng: np.random.Generator) -> np.ndarray:
    """Defocus, stripes, speckle and noise of an image (H, W), in the order of a camera."""
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, ranges.max_blur_px))
    if rng.random() < ranges.p_banding:
        stripes = rng.normal(0.0, rng.uniform(0.02, 0.12), (image.shape[0], 1)).astype(np.float32)
        image = image * (
            1.0 + cv2.GaussianBlur(stripes, (1, 0), sigmaX=0.1, sigmaY=rng.uniform(0.5, 4.0))
        )
    image = image * (
        1.0
        + rng.uniform(0.0, ranges.max_speckle) * rng.standard_normal(image.shape, dtype=np.float32)
    )
    return image + rng.uniform(0.0, ranges.max_noise) * rng.standard_normal(
        image.shape, dtype=np.float32
    )


def random_field(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A round or rectangular field of view of random place and extent, (H, W) bool.

    Args:
        size: (height, width), pixels.
        rng: of the draws.
    """
    height, width = size
    field = np.zeros(size, dtype=np.uint8)
    centre = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    half = 0.5 * max(size) * rng.uniform(0.7, 1.05)
    if rng.random() < 0.5:
        cv2.circle(field, tuple(int(v) for v in centre), int(half), 1, -1)
    else:
        box = cv2.boxPoints(
            (
                tuple(map(float, centre)),
                (2 * half, 2 * half * rng.uniform(0.7, 1.0)),
                float(rng.uniform(0, 90)),
            )
        )
        cv2.fillConvexPoly(field, box.astype(np.int32), 1)
    return field.astype(bool)


def randomise(
    image: np.ndarray,
    field_of_view: np.ndarray,
    ranges: PhotometricRanges,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Randomise the grey values and the field of view of an image.

    Args:
        image: (H, W) float32 in [0, 1].
        field_of_view: (H, W) bool.
        ranges: probabilities and ranges of the effects.
        rng: of the draws.

    Returns:
        The new image, (H, W) float32 in [0, 1], and its field of view, (H, W) bool, which lies
        inside of the given one.
    """
    if rng.random() >= ranges.p_apply:
        return image, field_of_view
    surround = 0.0 if rng.random() < 0.8 else rng.uniform(0.0, 0.8)
    if rng.random() < ranges.p_new_field:
        field_of_view = field_of_view & random_field(size_of_image(image), rng)
    if rng.random() < ranges.p_invert:
        image = 1.0 - image
    image = _light(image, ranges, rng)
    if rng.random() < ranges.p_patches:
        image = _patches(image, rng)
    image = np.where(field_of_view, image, surround)
    image = _sensor(image.astype(np.float32), ranges, rng)
    if rng.random() < 0.85:
        # Most cameras set the surround to black after readout; the others leave sensor noise there.
        image = np.where(field_of_view, image, surround)
    return np.clip(image, 0.0, 1.0).astype(np.float32), field_of_view
