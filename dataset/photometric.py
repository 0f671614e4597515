"""Photometric domain randomisation: changes the grey values of an image, not its geometry.

The two images of a pair are randomised independently, so that a network learns from the vessels
rather than from brightness, noise or field of view. Each effect models one of real cameras; its
probability and range are in :class:`PhotometricRanges`.

Drawing (:func:`draw_look`) and applying (:func:`apply_look`) are apart, because
:mod:`dataset.device_views` applies what was drawn here to whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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


SHADE_TERMS = 4  # largest number of grid lines of the uneven illumination, along each axis
NOISE_VALUES = 1 << 22  # 16 MB; sixteen times the pixels of an image of 512 x 512
NOISE_SEED = 20_241  # of the table of noise; chosen by hand


@dataclass(frozen=True)
class Look:
    """The drawn appearance of one image (H, W).

    Attributes:
        surround: grey value outside of the field of view, in [0, 1].
        new_field: (H, W) uint8, 1 inside a smaller field of view; None: unchanged.
        invert: whether the image becomes a negative.
        gamma: exponent of the grey values.
        contrast: relative to the original, about the mean.
        shade_rows, shade_columns: (H, SHADE_TERMS), (W, SHADE_TERMS) float32, whose product,
            clipped to [-1, 1], is the pattern of the uneven illumination.
        shading: its amplitude, relative to the image.
        gain: factor of the brightness.
        cover: (H, W) uint8, share of 255 by which blobs cover each pixel; None: no blobs.
        cover_level: their grey value, in [0, 1].
        blur_px: standard deviation of the defocus, pixels; 0 = sharp.
        stripes: (H,) float32, factor of each row; None: no stripes.
        speckle, noise: standard deviations of the multiplicative and the additive noise.
        speckle_at, noise_at: where their values begin in :func:`noise_table`.
        clean_surround: whether the surround is free of noise.
    """

    surround: float
    new_field: np.ndarray | None
    invert: bool
    gamma: float
    contrast: float
    shade_rows: np.ndarray
    shade_columns: np.ndarray
    shading: float
    gain: float
    cover: np.ndarray | None
    cover_level: float
    blur_px: float
    stripes: np.ndarray | None
    speckle: float
    noise: float
    speckle_at: int
    noise_at: int
    clean_surround: bool


@cache
def noise_table() -> np.ndarray:
    """(NOISE_VALUES,) float32, independent standard normal values; read only.

    An image takes a run of them from a random place, which costs a fiftieth of drawing its own.
    """
    values = np.random.default_rng(NOISE_SEED).standard_normal(NOISE_VALUES, dtype=np.float32)
    values.flags.writeable = False
    return values


def run_of(table: np.ndarray, start: int, n_values: int) -> np.ndarray:
    """A run of a table, which begins again where the table ends; (n_values,).

    Args:
        table: (N,).
        start: first place, in [0, N).
        n_values: length of the run.
    """
    if start + n_values <= len(table):
        return table[start : start + n_values]
    return table.take(np.arange(start, start + n_values), mode="wrap")


@cache
def _cubic_weights(n_pixels: int, cells: int) -> np.ndarray:
    """(n_pixels, SHADE_TERMS) float32: weights of a grid of ``cells`` + 1 lines, zeros behind."""
    lines = np.eye(cells + 1, dtype=np.float32)
    weights = np.zeros((n_pixels, SHADE_TERMS), dtype=np.float32)
    weights[:, : cells + 1] = cv2.resize(
        lines, (cells + 1, n_pixels), interpolation=cv2.INTER_CUBIC
    )
    return weights


def _draw_shade(size: Size, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``shade_rows`` and ``shade_columns`` of a smooth random pattern, see :class:`Look`."""
    cells = int(rng.integers(1, SHADE_TERMS))
    coarse = np.zeros((SHADE_TERMS, SHADE_TERMS), dtype=np.float32)
    coarse[: cells + 1, : cells + 1] = rng.uniform(-1.0, 1.0, (cells + 1, cells + 1))
    return _cubic_weights(size[0], cells) @ coarse, _cubic_weights(size[1], cells)


def _draw_cover(size: Size, rng: np.random.Generator) -> np.ndarray:
    """Dark or bright blobs: ``cover`` of :class:`Look`."""
    height, width = size
    cover = np.zeros(size, dtype=np.float32)
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
    return cv2.convertScaleAbs(soft, alpha=255.0)


def _draw_stripes(height: int, rng: np.random.Generator) -> np.ndarray:
    """Factor of each row of an image with horizontal stripes, (height,) float32."""
    stripes = rng.normal(0.0, rng.uniform(0.02, 0.12), (height, 1)).astype(np.float32)
    smooth = cv2.GaussianBlur(stripes, (1, 0), sigmaX=0.1, sigmaY=rng.uniform(0.5, 4.0))
    return 1.0 + smooth.reshape(height)


def random_field(size: Size, rng: np.random.Generator) -> np.ndarray:
    """A round or rectangular field of view of random place and extent, (H, W) uint8, 1 inside.

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
    return field


def draw_look(size: Size, ranges: PhotometricRanges, rng: np.random.Generator) -> Look | None:
    """Draw the appearance of an image.

    Args:
        size: (height, width) of the image, pixels.
        ranges: probabilities and ranges of the effects.
        rng: of the draws.

    Returns:
        None for an image that is left as it is.
    """
    if rng.random() >= ranges.p_apply:
        return None
    surround = 0.0 if rng.random() < 0.8 else float(rng.uniform(0.0, 0.8))
    new_field = random_field(size, rng) if rng.random() < ranges.p_new_field else None
    invert = bool(rng.random() < ranges.p_invert)
    gamma = float(np.exp(rng.uniform(-1.0, 1.0) * np.log(ranges.max_gamma)))
    contrast = float(rng.uniform(ranges.min_contrast, 1.2))
    shading = float(rng.uniform(0.0, ranges.shading))
    shade_rows, shade_columns = _draw_shade(size, rng)
    gain = float(rng.uniform(0.6, 1.3))
    has_cover = rng.random() < ranges.p_patches
    cover = _draw_cover(size, rng) if has_cover else None
    cover_level = float(rng.uniform(0.0, 1.0)) if has_cover else 0.0
    blur_px = float(rng.uniform(0.3, ranges.max_blur_px)) if rng.random() < 0.5 else 0.0
    stripes = _draw_stripes(size[0], rng) if rng.random() < ranges.p_banding else None
    last_start = max(1, NOISE_VALUES - size[0] * size[1])
    return Look(
        surround,
        new_field,
        invert,
        gamma,
        contrast,
        shade_rows,
        shade_columns,
        shading,
        gain,
        cover,
        cover_level,
        blur_px,
        stripes,
        speckle=float(rng.uniform(0.0, ranges.max_speckle)),
        noise=float(rng.uniform(0.0, ranges.max_noise)),
        speckle_at=int(rng.integers(last_start)),
        noise_at=int(rng.integers(last_start)),
        # Most cameras set the surround to black after readout; the others leave sensor noise there.
        clean_surround=bool(rng.random() < 0.85),
    )


def _light(image: np.ndarray, look: Look) -> None:
    """Inversion, gamma, contrast, uneven illumination, brightness of an image (H, W), in place."""
    # Warping leaves values a rounding error outside of [0, 1], whose power would be NaN.
    np.clip(image, 0.0, 1.0, out=image)
    if look.invert:
        np.subtract(1.0, image, out=image)
    np.power(image, np.float32(look.gamma), out=image)
    mean = float(image.mean())
    image *= look.contrast
    image += (1.0 - look.contrast) * mean
    shade = look.shade_rows @ look.shade_columns.T
    np.clip(shade, -1.0, 1.0, out=shade)
    shade *= look.shading * look.gain
    shade += look.gain
    image *= shade


def _sensor(image: np.ndarray, look: Look) -> np.ndarray:
    """Defocus, stripes, speckle and noise of an image (H, W), in the order of a camera."""
    if look.blur_px:
        image = cv2.GaussianBlur(image, (0, 0), look.blur_px)
    if look.stripes is not None:
        image *= look.stripes[:, None]
    table, n_pixels = noise_table(), image.size
    noise = run_of(table, look.speckle_at, n_pixels).reshape(image.shape) * look.speckle
    noise += 1.0
    image *= noise
    np.multiply(run_of(table, look.noise_at, n_pixels).reshape(image.shape), look.noise, out=noise)
    image += noise
    return image


def apply_look(
    image: np.ndarray, field_of_view: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Give an image its drawn appearance.

    Args:
        image: (H, W) float32 in [0, 1].
        field_of_view: (H, W) bool.
        look: of this size.

    Returns:
        The new image, (H, W) float32 in [0, 1], and its field of view, (H, W) bool, which lies
        inside of the given one.
    """
    if look.new_field is not None:
        field_of_view = field_of_view & (look.new_field > 0)
    outside = ~field_of_view
    image = image.astype(np.float32)
    _light(image, look)
    if look.cover is not None:
        soft = look.cover.astype(np.float32)
        soft /= 255.0
        image += soft * (look.cover_level - image)
    np.copyto(image, look.surround, where=outside)
    image = _sensor(image, look)
    if look.clean_surround:
        np.copyto(image, look.surround, where=outside)
    np.clip(image, 0.0, 1.0, out=image)
    return image, field_of_view


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
        See :func:`apply_look`.
    """
    look = draw_look(size_of_image(image), ranges, rng)
    return (image, field_of_view) if look is None else apply_look(image, field_of_view, look)
