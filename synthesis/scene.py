"""How one piece of retina looks as colour fundus photograph, angiogram, OCT en-face and OCTA en-face.

All four renderers take the same :class:`Scene` and a random generator that draws the instrument, the exposure and the
illness of the picture, so that two renderings share nothing but the anatomy. Intensities are float32 in [0, 1].

How near this comes to real pictures, measured at 512 px (10th / 50th / 90th percentile over pictures; d' = vessel mean
minus near background, over the background's spread; vessels from masks). Real: 14 CHASE_DB1, 21 HRF, 19 ROSSA (15 for
the grey) and 30 FA frames; rendered: 30 eyes of one seed.

    quantity                     real                                                     rendered
    vessel share of the mask     .06 .07 .08 (CHASE_DB1), .07 .09 .10 (HRF)               .05 .07 .10
    junctions in the mask        42 49 60 (CHASE_DB1), 114 156 184 (HRF)                  48 81 119
    d' CF, green                 -.4 -.3 -.2 (CHASE_DB1), -.8 -.5 -.3 (HRF)               -1.1 -.7 -.2
    d' OCTA, thin / thick        1.0 1.6 2.0 / 2.4 3.4 4.0 (ROSSA)                        1.2 2.2 4.0 / 2.3 4.1 6.1
    FA mean grey                 .18 .25 .35 (frames), .28 .30 .55 (6 real pairs)         .14 .30 .51
    FA 99th percentile           .71 .86 .98 (frames), .59 .65 .87 (6 real pairs)         .43 .74 .99
    OCTA mean grey               .29 .31 .41 (ROSSA)                                      .23 .29 .43

So contrast spreads about as widely as in real pictures, or wider, with more faint angiograms on purpose; but the trees
fork less often than the finest real masks (HRF). The real FA have no masks, so their d' is unknown. By eye, real
angiograms have finer, straighter twigs about the fovea and a darker foveal spot, real photographs more structure in the
choroid and nerve fibres, real OCTA a capillary net of more even mesh. OCT en-face was rendered after descriptions;
there were no real ones to measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

LESIONS = (
    "haemorrhage",
    "exudate",
    "cotton_wool",
    "drusen",
    "laser_scar",
    "non_perfusion",
    "leakage",
)
FULL_DEPTH_DD = 0.06  # a vessel this wide absorbs like the largest


@dataclass(frozen=True)
class Scene:
    """What is there to be seen in one square frame; all arrays (size, size) float32, aligned pixel to pixel.

    Attributes:
        px_per_dd: pixels per disc diameter.
        disc: (x, y) pixel of the disc's centre, may lie outside the frame.
        disc_axes: half axes of the disc in pixels.
        fovea: (x, y) pixel of the fovea, may lie outside the frame.
        avascular_radius: radius of the foveal avascular zone in pixels.
        artery, vein: coverage in [0, 1] of the vessels a fundus photograph can show.
        artery_core, vein_core: coverage of the middle of those vessels (central reflex, laminar flow).
        depth: blood column under a vessel pixel, in [0, 1], 1 for the large trunks; meaningless beside vessels.
        fine: coverage of vessels too thin for a photograph.
        seg: bool, the vessel mask.
        field: the photograph's field of view in [0, 1].
        background: slow variation of the fundus, zero mean, about unit spread.
        lesions: coverage in [0, 1] for each of ``LESIONS`` present.
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
        return self.artery.shape[0]

    def lesion(self, kind: str) -> np.ndarray:
        """(size, size) coverage of one kind of lesion, zero where there is none."""
        return self.lesions.get(kind, np.zeros_like(self.artery))


# ----------------------------------------------------------------------------------------------- fields and optics


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> np.ndarray:
    """(size, size) zero-mean, unit-spread random field with about ``cells`` bumps across the frame."""
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
    """(size, size) zero-mean, unit-spread field with detail at ``octaves`` scales."""
    total = sum(smooth_noise(rng, size, cells * 2**k) * 0.6**k for k in range(octaves))
    return total / (total.std() + 1e-6)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels; below 0.2 px the image is returned as it is."""
    if sigma < 0.2:
        return image
    if sigma < 8:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    # A wide blur leaves nothing that a smaller picture could not hold, and is much cheaper there.
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
    """(size, size) elliptic distance from ``centre``, 1 on the ellipse with half axes ``axes`` (pixels)."""
    axes = np.broadcast_to(np.asarray(axes, np.float32), (2,))
    y, x = np.ogrid[:size, :size]
    return np.sqrt(((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2).astype(
        np.float32
    )


def capillary_mesh(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(size, size) in [0, 1]: a net of capillaries with meshes of about 100 micrometres, absent at the fovea."""
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
    """(size, size) in [0, 1], the camera's field: a disc, often cut off above and below, sometimes with a notch."""
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
    """(size, size) factor in (0, 1]: light falling off from a bright place that is not quite the middle."""
    centre = (size - 1) / 2 + rng.normal(0, 0.12, 2) * size
    return 1 / (1 + strength * radius_map(size, centre, 0.5 * size) ** 2 * rng.uniform(0.7, 1.3))


def finish(
    image: np.ndarray, rng: np.random.Generator, noise: float, softness: float
) -> np.ndarray:
    """Camera: blur (pixels), noise (standard deviation, partly grainy), sometimes lost resolution and JPEG blocks."""
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
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED).astype(np.float32) / 255
    return image


def inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 where ``distance`` is well below 1, 0 well above, going over within about ``edge``."""
    return (0.5 - 0.5 * np.tanh((distance - 1) / edge)).astype(np.float32)
