"""The content of one square frame (:class:`Scene`), and what the renderers of all modalities share.

A renderer takes a :class:`Scene` and a random generator, which draws instrument, exposure and
image quality; two renderings of one scene have nothing but the anatomy in common. Intensities are
float32 in [0, 1].

Comparison with real images at 512 px: 10th / 50th / 90th percentile over images; d' = (vessel mean
- mean of the near background) / standard deviation of the background, vessels from masks.
Real: 14 CHASE_DB1, 21 HRF, 19 ROSSA (15 for the grey values) and 30 FA frames. Rendered: 30 eyes of
one seed.

    quantity                   real                                             rendered
    vessel share of the mask   .06 .07 .08 (CHASE_DB1), .07 .09 .10 (HRF)       .05 .07 .10
    junctions in the mask      42 49 60 (CHASE_DB1), 114 156 184 (HRF)          48 81 119
    d' CF, green               -.4 -.3 -.2 (CHASE_DB1), -.8 -.5 -.3 (HRF)       -1.1 -.7 -.2
    d' OCTA, thin vessels      1.0 1.6 2.0 (ROSSA)                              1.2 2.2 4.0
    d' OCTA, thick vessels     2.4 3.4 4.0 (ROSSA)                              2.3 4.1 6.1
    FA mean grey               .18 .25 .35 (frames), .28 .30 .55 (6 real pairs) .14 .30 .51
    FA 99th percentile         .71 .86 .98 (frames), .59 .65 .87 (6 real pairs) .43 .74 .99
    OCTA mean grey             .29 .31 .41 (ROSSA)                              .23 .29 .43

The range of vessel contrast is as wide as in real images or wider, with more faint angiograms by
design. The trees have fewer junctions than the most detailed real masks (HRF). The real FA have no
masks, so their d' is unknown. By eye, real angiograms have finer, straighter vessels around the
fovea and a darker foveal spot, real photographs more choroidal and nerve fibre texture, and real
OCTA a more even capillary mesh. OCT en-face was rendered after published descriptions; no real
images were available for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FULL_DEPTH_DD = 0.06  # disc diameters; vessels at least this wide have full absorption


@dataclass(frozen=True)
class Scene:
    """Anatomy and lesions in one square frame; rasters are (size, size), aligned pixel to pixel.

    Rasters are float32 unless noted; points are pixels (x, y).

    Attributes:
        px_per_dd: pixels per disc diameter.
        disc: (2,) centre of the optic disc, may lie outside the frame.
        disc_axes: (2,) half axes of the disc, pixels.
        fovea: (2,) centre of the fovea, may lie outside the frame.
        avascular_radius: radius of the foveal avascular zone in pixels.
        artery, vein: coverage in [0, 1] of the vessels that a fundus photograph shows.
        artery_core, vein_core: coverage in [0, 1] of the middle of those vessels (central reflex,
            laminar flow).
        depth: blood column of a vessel pixel in [0, 1], 1 for large trunks; undefined elsewhere.
        fine: coverage in [0, 1] of vessels too thin for a photograph.
        seg: bool, the vessel mask.
        field: the photograph's field of view in [0, 1].
        background: slow variation of the fundus, zero mean, standard deviation about 1.
        lesions: coverage in [0, 1] by kind of ``synthesis.lesions.LESION_PLANS``; absent kinds are
            left out.
    """

    px_per_dd: float
    disc: np.ndarray
    disc_axes: np.ndarray
    fovea: np.ndarray
    avascular_radius: float
    artery: np.ndarray
    vein: np.ndarray
    artery_core: np.ndarray
    vein_core: np.ndarray
    depth: np.ndarray
    fine: np.ndarray
    seg: np.ndarray
    field: np.ndarray
    background: np.ndarray
    lesions: dict[str, np.ndarray]

    @property
    def size(self) -> int:
        """Side of the frame, pixels."""
        return self.artery.shape[0]

    def lesion(self, kind: str) -> np.ndarray:
        """(size, size) coverage of one kind of lesion in [0, 1], all zero without any."""
        return self.lesions.get(kind, np.zeros_like(self.artery))


# --- random fields and optics ---------------------------------------------------------------------


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> np.ndarray:
    """Smooth random field, (size, size) float32, mean 0, standard deviation 1.

    Args:
        rng: of the draws.
        size: side, pixels.
        cells: about the number of maxima across the frame.
    """
    side = int(np.clip(round(cells), 2, size)) + 3
    coarse = rng.standard_normal((side, side), dtype=np.float32)
    large = cv2.resize(
        coarse, None, fx=size / (side - 3), fy=size / (side - 3), interpolation=cv2.INTER_CUBIC
    )
    large = large[-size:, -size:]
    return (large - large.mean()) / (large.std() + 1e-6)


def fractal_noise(
    rng: np.random.Generator, size: int, cells: float, octaves: int = 4
) -> np.ndarray:
    """Random field with detail at several scales, (size, size) float32, mean 0, deviation 1.

    Args:
        rng: of the draws.
        size: side, pixels.
        cells: about the number of maxima of the coarsest scale across the frame.
        octaves: number of scales, each half as coarse and 0.6 times as strong as the one before.
    """
    total = smooth_noise(rng, size, cells)
    for octave in range(1, octaves):
        total = total + smooth_noise(rng, size, cells * 2**octave) * 0.6**octave
    return total / (total.std() + 1e-6)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of an image (H, W) or (H, W, C).

    Args:
        image: float.
        sigma: standard deviation, pixels; below 0.2 px the image is returned unchanged.
    """
    if sigma < 0.2:
        return image
    if sigma < 8:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    # After a wide blur a smaller image holds all detail, so blur there: much cheaper.
    height, width = image.shape[:2]
    shrink = sigma / 4
    small = (max(2, round(width / shrink)), max(2, round(height / shrink)))
    blurred = cv2.GaussianBlur(
        cv2.resize(image, small, interpolation=cv2.INTER_AREA),
        (0, 0),
        4,
        borderType=cv2.BORDER_REFLECT,
    )
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def radius_map(size: int, centre: np.ndarray, axes: np.ndarray | float) -> np.ndarray:
    """Elliptic distance from a point, (size, size) float32.

    Args:
        size: side, pixels.
        centre: (2,), pixels (x, y).
        axes: half axes (x, y) of the ellipse on which the distance is 1, pixels; one number for a
            circle.
    """
    axes = np.broadcast_to(np.asarray(axes, np.float32), (2,))
    y, x = np.ogrid[:size, :size]
    return np.sqrt(((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2).astype(
        np.float32
    )


def capillary_mesh(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Coverage of a capillary network, (size, size) in [0, 1], absent at the fovea.

    Meshes are about 0.1 mm wide.
    """
    cells = scene.size / max(rng.uniform(0.025, 0.045) * scene.px_per_dd, 1.8)
    mesh = np.zeros((scene.size, scene.size), np.float32)
    for factor in (0.7, 1.1):
        mesh = np.maximum(
            mesh, np.exp(-((smooth_noise(rng, scene.size, cells * factor) / 0.25) ** 2))
        )
    edge = scene.avascular_radius * (1 + 0.12 * smooth_noise(rng, scene.size, 8))
    distance = radius_map(scene.size, scene.fovea, 1.0)
    mesh *= 1 - inside(1 + (distance - edge) / scene.px_per_dd, 0.08)
    return mesh * (1 - scene.lesion("non_perfusion"))


def round_field(size: int, rng: np.random.Generator, full_frame: float = 0.1) -> np.ndarray:
    """Field of view of a fundus camera, (size, size) float32 in [0, 1].

    A disc, often clipped above and below, sometimes with a round orientation tab at its edge.

    Args:
        size: side, pixels.
        rng: of the draws.
        full_frame: probability that the field is the whole frame.
    """
    if rng.random() < full_frame:
        return np.ones((size, size), np.float32)
    radius = size * rng.uniform(0.46, 0.53)
    centre = (size - 1) / 2 + rng.normal(0, 0.01, 2) * size
    margin = (radius - radius_map(size, centre, 1.0)) / (size * rng.uniform(0.001, 0.006))
    if rng.random() < 0.45:
        half = size * rng.uniform(0.36, 0.47)
        margin = np.minimum(
            margin, (half - np.abs(np.arange(size, dtype=np.float32) - centre[1]))[:, None]
        )
    shown = np.clip(margin + 0.5, 0, 1)
    if rng.random() < 0.3:
        angle = rng.uniform(0, 2 * np.pi)
        tab = centre + radius * 1.01 * np.array([np.cos(angle), np.sin(angle)])
        shown = np.maximum(shown, radius_map(size, tab, 0.025 * size) < 1)
    return shown.astype(np.float32)


def vignette(size: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Factor of decreasing illumination, (size, size) in (0, 1], brightest near the middle.

    Args:
        size: side, pixels.
        rng: of the draws.
        strength: of the decrease; 0 is even illumination.
    """
    centre = (size - 1) / 2 + rng.normal(0, 0.12, 2) * size
    return 1 / (1 + strength * radius_map(size, centre, 0.5 * size) ** 2 * rng.uniform(0.7, 1.3))


def finish(
    image: np.ndarray, rng: np.random.Generator, noise: float, softness: float
) -> np.ndarray:
    """Effects of the camera: blur, noise, in some images halved resolution and JPEG compression.

    Args:
        image: (size, size) or (size, size, 3) float32.
        rng: of the draws.
        noise: standard deviation of the pixel noise; the same amount of correlated noise is added.
        softness: standard deviation of the blur, pixels.

    Returns:
        The image, same shape, in [0, 1].
    """
    size = image.shape[0]
    image = blur(image, softness)
    if rng.random() < 0.15:
        small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image = np.clip(image + noise * (grain + blur(grain, rng.uniform(0, 1.2))), 0, 1)
    if rng.random() < 0.2:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 85))]
        encoded = cv2.imencode(".jpg", (image * 255 + 0.5).astype(np.uint8), quality)[1]
        decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        assert decoded is not None, "encoded by OpenCV itself"
        image = decoded.astype(np.float32) / 255
    return image


def inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """Soft membership in [0, 1] of places nearer than distance 1: (H, W) float32.

    Args:
        distance: (H, W), as of :func:`radius_map`.
        edge: width of the transition, in units of ``distance``.
    """
    return (0.5 - 0.5 * np.tanh((distance - 1) / edge)).astype(np.float32)
