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


# ------------------------------------------------------------------------------------------- colour fundus photograph

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
    """A colour photograph of the scene. Returns (size, size, 3) RGB in [0, 1]."""
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
    """Choroidal vessels shining through: broad pale bands, in patches."""
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
    """Pale lesions lie under or among the vessels."""
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
    """Blood absorbs green and blue more than red; arteries are paler and carry a reflex along the middle."""
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
    """Uneven light, a veil of scattered light, and reflections of the inner limiting membrane."""
    size = image.shape[0]
    image = image * (1 + rng.uniform(0, 0.25) * smooth_noise(rng, size, 2)).clip(0.3)[..., None]
    if rng.random() < 0.4:
        veil = np.clip(0.5 + 0.5 * smooth_noise(rng, size, 2), 0, 1) * rng.uniform(0.02, 0.2)
        image = image + veil[..., None] * rng.uniform(0.6, 1, 3).astype(np.float32)
    if rng.random() < 0.1:
        sheen = np.clip(smooth_noise(rng, size, 6) - 0.8, 0, 1) * rng.uniform(0.03, 0.12)
        image = image + sheen[..., None]
    return image


# ------------------------------------------------------------------------------------------------------ angiogram


def render_fa(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A fluorescein angiogram of the scene, at a random phase. Returns (size, size) in [0, 1]."""
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
    """Pigment hides the choroid at the fovea, in a spot with ragged edges."""
    radius = radius_map(scene.size, scene.fovea, scene.px_per_dd * rng.uniform(0.35, 0.75))
    return np.exp(-((radius * (1 + 0.12 * smooth_noise(rng, scene.size, 12))) ** 2))


def _fa_scars(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Laser scars: dark spots, bright-rimmed in some pictures; relative to the choroidal flush."""
    scar = scene.lesion("laser_scar")
    ring = np.clip(blur(scar, 0.05 * scene.px_per_dd) * 3 * (1 - scar), 0, 1)
    return ring * rng.uniform(0, 0.8) - scar * rng.uniform(0.3, 0.8)


def _fa_vessels(scene: Scene, flush: float, rng: np.random.Generator) -> np.ndarray:
    """Fluorescence of the vessels: arterial, laminar venous, full or late phase."""
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
    # Never fainter than the choroid's own grain, or there would be nothing to match.
    strength = max(strength, 0.1 + 0.35 * flush)
    dimming = scene.depth ** rng.uniform(0, 0.6)
    glow = np.maximum(np.maximum(artery, vein) * dimming, rng.uniform(0.2, 0.8) * scene.fine)
    around_macula = np.exp(-(radius_map(scene.size, scene.fovea, 2.2 * scene.px_per_dd) ** 2))
    mesh = capillary_mesh(scene, rng) * rng.uniform(0, 0.22) * (0.3 + 0.7 * around_macula)
    glow = glow * (1 - 0.8 * scene.lesion("non_perfusion") * (scene.artery + scene.vein < 0.6))
    # Light scattered in the retina and the lens: a faint halo about the larger vessels.
    halo = blur(glow, 0.08 * scene.px_per_dd) * rng.uniform(0, 0.35)
    return strength * np.maximum(glow, mesh) + strength * halo


# ------------------------------------------------------------------------------------------------------ OCT, OCTA


def render_oct(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """An OCT en-face projection: grey, vessels as soft dark shadows. Returns (size, size) in [0, 1]."""
    size = scene.size
    level = rng.uniform(0.3, 0.8)
    image = level * (
        1 + 0.12 * scene.background + rng.uniform(0.02, 0.1) * fractal_noise(rng, size, 8)
    )
    image = image * _oct_macula(scene, rng) * _oct_disc(scene, rng)
    widen = rng.uniform(0.4, 2.4) * size / 512
    # A shadow is wider and softer than its vessel, and the finest vessels cast none.
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
    """Multiplicative grain of the scan's own sampling, often two or three times coarser than the picture's pixels."""
    size = image.shape[0]
    samples = size if rng.random() < 0.5 else int(size / rng.uniform(1.2, 2.3))
    coarse = cv2.resize(image, (samples, samples), interpolation=cv2.INTER_AREA)
    grain = rng.standard_normal((samples, samples), dtype=np.float32)
    coarse = coarse * np.clip(
        1 + blur(grain, rng.uniform(0, 0.9)) * rng.uniform(0.06, 0.35), 0, None
    )
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def _eye_motion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift blocks of scan lines sideways, by under one pixel: visible as a jag, harmless to the alignment."""
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
    radius = radius_map(scene.size, scene.fovea, scene.px_per_dd * rng.uniform(0.25, 0.9))
    ring = np.exp(-(((radius - 1.3) / 0.5) ** 2)) * rng.uniform(0, 0.25)
    return 1 + rng.uniform(-0.5, 0.35) * np.exp(-(radius**2)) + ring


def _oct_disc(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The disc: dark, bright, or one or two rings, as the projected slab crosses its slopes."""
    distance = radius_map(scene.size, scene.disc, scene.disc_axes)
    within = inside(distance, 0.16)
    rings = rng.uniform(-0.5, 0.6) * np.exp(-(((distance - 1.1) / 0.12) ** 2))
    rings += rng.uniform(-0.5, 0.5) * np.exp(-(((distance - rng.uniform(0.4, 0.7)) / 0.1) ** 2))
    return np.clip(1 + within * rng.uniform(-0.85, 0.5) + rings, 0.05, None)


def _scan_lines(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, 1) or (1, size) factor: bands and single lines of other brightness across the slow scan axis."""
    rows = 1 + rng.uniform(0.01, 0.08) * rng.standard_normal((size, 1), dtype=np.float32)
    bands = smooth_noise(rng, size, int(rng.integers(4, 40)))[:, :1] * rng.uniform(0, 0.12)
    lines = np.zeros((size, 1), np.float32)
    for _ in range(rng.poisson(2.5)):
        at, thick = rng.integers(size), int(rng.integers(1, max(2, size // 100) + 1))
        lines[at : at + thick] = rng.uniform(-0.5, 0.3)
    factor = np.clip(rows + bands + lines, 0.1, None).astype(np.float32)
    return factor if rng.random() < 0.8 else factor.T


def _signal_loss(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) factor in [0, 1]: dark corners, bands or clouds where the signal is gone."""
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
    """(size, size) in {0, 1}: the scanned square, about fovea or disc if seen, black outside; or the whole frame."""
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
    """An OCT angiogram en-face: bright vessels over a dense capillary net and noise. Returns (size, size) in [0, 1]."""
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
    # Successive places of one scan line share their noise, so the grain runs along the lines.
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
