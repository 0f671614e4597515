"""All pictures of one invented eye."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthesis.angiogram import render_fa
from synthesis.colour_fundus import render_cf
from synthesis.lesions import draw_lesions, rasterise_lesions
from synthesis.oct_scan import render_oct, render_octa
from synthesis.scene import FULL_DEPTH_DD, Scene, fractal_noise, round_field
from synthesis.sources import Source
from synthesis.vessel_drawing import Eye, View, draw_vessels
from synthesis.vessel_growth import grow_eye

# Keys of the random streams, so that no two draws share a stream.
ANATOMY, VIEW, LESIONS, CF, FA, OCT, OCTA, SCENE = range(8)
LEAST_VISIBLE_PX = 0.55
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Job:
    """One folder to write: eye (from 1), visit (from 0) and the real picture, if it starts from one."""

    root: Path
    eye: int
    visit: int
    seed: int
    size: int
    source: Source | None = None

    @property
    def name(self) -> str:
        return f"{self.eye}_{LETTERS[self.visit]}"

    def rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.eye, self.visit, stream])


def file_names(sample: str, size: int) -> dict[str, str]:
    """The files of one folder: role ('cf', 'fa', 'oct', 'seg', 'cf_clip', 'octa', 'seg_clip') to file name."""
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


# ------------------------------------------------------------------------------------------------ procedural scenes


def draw_view(eye: Eye, size: int, rng: np.random.Generator) -> View:
    """The camera of a fundus photograph: 30 to 50 degrees about the disc, the macula, between them or farther out."""
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
    """The macular scan of an OCTA: 3 to 4.6 disc diameters (4.5 to 7 mm) within what the photograph shows."""
    side_dd = rng.uniform(3.0, 4.6)
    centre = eye.fovea * rng.choice((1.0, 0.85, 0.6), p=(0.6, 0.2, 0.2)) + rng.normal(0, 0.15, 2)
    return View(centre, view.size / side_dd, view.size, view.angle)


def draw_scene(
    eye: Eye,
    view: View,
    spots: dict[str, np.ndarray],
    least_width_dd: float,
    field: np.ndarray,
    rng: np.random.Generator,
) -> Scene:
    """Rasterise one view of an eye.

    Args:
        eye: anatomy.
        view: camera.
        spots: lesions from :func:`draw_lesions`.
        least_width_dd: vessels thinner than this are invisible to a photograph (not in the mask).
        field: (size, size) the photograph's field of view in [0, 1]; the mask ends there.
        rng: draws the fundus background.
    """
    visible = (max(least_width_dd * view.px_per_dd, LEAST_VISIBLE_PX), np.inf)
    hidden = (0.0, visible[0])
    layers = {}
    for name, tree in (("artery", eye.artery), ("vein", eye.vein)):
        layers[name] = draw_vessels(tree, view, widths_px=visible)
        layers[f"{name}_core"] = draw_vessels(tree, view, scale=0.35, widths_px=visible) * (
            layers[name] > 0.6
        )
    fine = np.maximum(
        draw_vessels(eye.artery, view, widths_px=hidden),
        draw_vessels(eye.vein, view, widths_px=hidden),
    )
    mask = (
        np.maximum(
            draw_vessels(eye.artery, view, least_px=1.2, widths_px=visible),
            draw_vessels(eye.vein, view, least_px=1.2, widths_px=visible),
        )
        >= 0.5
    )
    # Drawn wider than the vessels, so that their blurred edges have a depth too.
    depth = np.maximum(
        *(
            draw_vessels(tree, view, 1.5, least_px=6.0, widths_px=visible, full_dd=FULL_DEPTH_DD)
            for tree in (eye.artery, eye.vein)
        )
    )
    size = view.size
    return Scene(
        view.px_per_dd,
        view.to_pixels(np.zeros(2)),
        eye.disc_axes * view.px_per_dd,
        view.to_pixels(eye.fovea),
        eye.avascular_radius * view.px_per_dd,
        fine=fine,
        depth=depth,
        **layers,
        seg=mask & (field > 0.5),
        field=field,
        background=fractal_noise(rng, size, size / (2.5 * view.px_per_dd), 3),
        lesions=rasterise_lesions(spots, view, rng),
    )


def procedural_pictures(job: Job) -> dict[str, np.ndarray]:
    """All pictures of one folder (role to array) for an invented eye."""
    # The anatomy has no visit in its seed: all letters of one number are the same eye.
    eye = grow_eye(np.random.default_rng([job.seed, job.eye, ANATOMY]))
    rng = job.rng(VIEW)
    view = draw_view(eye, job.size, rng)
    clip = draw_clip_view(eye, view, rng)
    least_width = rng.uniform(0.008, 0.022)
    spots = draw_lesions(eye.fovea, job.rng(LESIONS))
    whole = np.ones((job.size, job.size), np.float32)
    scene = draw_scene(eye, view, spots, least_width, round_field(job.size, rng), rng)
    # Enlarged, a photograph shows somewhat thinner vessels.
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
