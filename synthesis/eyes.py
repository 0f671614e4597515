"""Images of one procedurally generated eye in all modalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from synthesis.angiogram import render_fa
from synthesis.colour_fundus import render_cf
from synthesis.lesions import draw_lesions, rasterise_lesions
from synthesis.oct_scan import render_oct, render_octa
from synthesis.scene import FULL_DEPTH_DD, Scene, fractal_noise, round_field
from synthesis.sources import Source
from synthesis.vessel_drawing import Eye, Projection, Vessels, View, draw_vessels
from synthesis.vessel_growth import grow_eye

# Last elements of the seeds of the random streams, so that no two draws share a stream.
ANATOMY, VIEW, LESIONS, CF, FA, OCT, OCTA, SCENE = range(8)
MIN_VISIBLE_PX = 0.55  # thinner vessels are not in the mask of a photograph, pixels
MIN_MASK_PX = 1.2  # thinner vessels of the mask are drawn this wide, pixels
CORE_SHARE = 0.35  # width of a vessel's core, share of its width
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Job:
    """One folder to write.

    Attributes:
        root: folder of the set.
        eye: number of the eye, from 1.
        visit: number of the rendering of this eye, from 0.
        seed: of the set.
        size: side of all images, pixels.
        source: the real image to start from; None generates the eye.
    """

    root: Path
    eye: int
    visit: int
    seed: int
    size: int
    source: Source | None = None

    @property
    def name(self) -> str:
        """Name of the folder, for example 1_A."""
        return f"{self.eye}_{LETTERS[self.visit]}"

    def rng(self, stream: int) -> np.random.Generator:
        """Generator of one random stream of this folder; ``stream`` is one of the keys above."""
        return np.random.default_rng([self.seed, self.eye, self.visit, stream])


def file_names(sample: str, size: int) -> dict[str, str]:
    """File names of one folder.

    Args:
        sample: name of the folder.
        size: side of the images, pixels; 512 is part of the names of photographs.

    Returns:
        Role ("cf", "fa", "oct", "seg", "cf_clip", "octa", "seg_clip") to file name.
    """
    tag = "_512" if size == 512 else ""
    return {
        "cf": f"{sample}_cf{tag}.png",
        "fa": f"{sample}_fa_gen.png",
        "oct": f"{sample}_oct_gen.png",
        "seg": f"{sample}_seg.png",
        "cf_clip": f"{sample}_cf_clip{tag}.png",
        "octa": f"{sample}_octa_gen.png",
        "seg_clip": f"{sample}_seg_clip.png",
    }


def draw_view(eye: Eye, size: int, rng: np.random.Generator) -> View:
    """Draw the view of a fundus photograph.

    The field is 30 to 50 degrees wide, about the disc, the macula, their middle or the periphery.
    """
    frame_dd = rng.uniform(5.6, 9.5)
    kind = rng.choice(("disc", "macula", "between", "periphery"), p=(0.22, 0.3, 0.33, 0.15))
    if kind == "periphery":
        heading = rng.uniform(0, 2 * np.pi)
        centre = eye.fovea / 2 + rng.uniform(1.5, 3.0) * np.array(
            [np.cos(heading), np.sin(heading)]
        )
        frame_dd = min(frame_dd, 7.0)
    else:
        centre = eye.fovea * {"disc": 0.0, "macula": 0.95, "between": 0.5}[kind]
    return View(centre + rng.normal(0, 0.25, 2), size / frame_dd, size, rng.normal(0, 0.07))


def draw_clip_view(eye: Eye, view: View, rng: np.random.Generator) -> View:
    """Draw the view of an OCTA: a macular scan 3 to 4.6 disc diameters (4.5 to 7 mm) wide.

    Rotation and image size are those of ``view``.
    """
    side_dd = rng.uniform(3.0, 4.6)
    centre = eye.fovea * rng.choice((1.0, 0.85, 0.6), p=(0.6, 0.2, 0.2)) + rng.normal(0, 0.15, 2)
    return View(centre, view.size / side_dd, view.size, view.angle)


def draw_scene(
    eye: Eye,
    view: Projection,
    spots: dict[str, np.ndarray],
    least_width_dd: float,
    field: np.ndarray,
    rng: np.random.Generator,
) -> Scene:
    """Rasterise one view of an eye.

    Args:
        eye: anatomy.
        view: projection of the retina into the image.
        spots: lesions from :func:`draw_lesions`.
        least_width_dd: vessels thinner than this are invisible in a photograph and not in the mask,
            disc diameters.
        field: (size, size) in [0, 1], field of view of the photograph; the mask is empty outside.
        rng: draws the background and the shapes of the lesions.
    """
    least_px = max(least_width_dd * view.px_per_dd, MIN_VISIBLE_PX)
    visible, hidden = (least_px, np.inf), (0.0, least_px)
    trees = (eye.artery, eye.vein)
    artery, vein = (draw_vessels(tree, view, widths_px=visible) for tree in trees)
    artery_core, vein_core = (
        draw_vessels(tree, view, scale=CORE_SHARE, widths_px=visible) * (layer > 0.6)
        for tree, layer in zip(trees, (artery, vein), strict=True)
    )
    fine = _maximum_over_trees(eye, partial(draw_vessels, view=view, widths_px=hidden))
    in_mask = partial(draw_vessels, view=view, least_px=MIN_MASK_PX, widths_px=visible)
    # Drawn wider than the vessels, so that their blurred edges have a depth too.
    wide = partial(
        draw_vessels, view=view, scale=1.5, least_px=6.0, widths_px=visible, full_dd=FULL_DEPTH_DD
    )
    return Scene(
        px_per_dd=view.px_per_dd,
        disc=view.to_pixels(np.zeros(2)),
        disc_axes=eye.disc_axes * view.px_per_dd,
        fovea=view.to_pixels(eye.fovea),
        avascular_radius=eye.avascular_radius * view.px_per_dd,
        artery=artery,
        vein=vein,
        artery_core=artery_core,
        vein_core=vein_core,
        fine=fine,
        depth=_maximum_over_trees(eye, wide),
        seg=(_maximum_over_trees(eye, in_mask) >= 0.5) & (field > 0.5),
        field=field,
        background=fractal_noise(rng, view.size, view.size / (2.5 * view.px_per_dd), 3),
        lesions=rasterise_lesions(spots, view, rng),
    )


def _maximum_over_trees(eye: Eye, draw: Callable[[Vessels], np.ndarray]) -> np.ndarray:
    """Pixelwise maximum (size, size) of the rasterised arteries and veins."""
    return np.maximum(draw(eye.artery), draw(eye.vein))


def procedural_pictures(job: Job) -> dict[str, np.ndarray]:
    """Render all images of one folder.

    Returns:
        Role (see :func:`file_names`) to (size, size) or (size, size, 3) float32 in [0, 1]; masks
        are (size, size) bool.
    """
    # The seed of the anatomy has no visit: all folders of one number show the same eye.
    eye = grow_eye(np.random.default_rng([job.seed, job.eye, ANATOMY]))
    rng = job.rng(VIEW)
    view = draw_view(eye, job.size, rng)
    clip = draw_clip_view(eye, view, rng)
    least_width = rng.uniform(0.008, 0.022)
    spots = draw_lesions(eye.fovea, job.rng(LESIONS))
    whole = np.ones((job.size, job.size), np.float32)
    scene = draw_scene(eye, view, spots, least_width, round_field(job.size, rng), rng)
    # A photograph of higher magnification shows thinner vessels.
    scene_clip = draw_scene(eye, clip, spots, 0.85 * least_width, whole, rng)
    return {
        "cf": render_cf(scene, job.rng(CF)),
        "fa": render_fa(scene, job.rng(FA)),
        "oct": render_oct(scene, job.rng(OCT)),
        "seg": scene.seg,
        "cf_clip": render_cf(scene_clip, job.rng(CF)),
        "octa": render_octa(scene_clip, job.rng(OCTA)),
        "seg_clip": scene_clip.seg,
    }
