"""Write a *generated* data set: perfectly aligned CF, FA, OCT and OCTA pictures with vessel masks, from nothing.

    python -m dataset.synthesize --out data/generated --eyes 60
    python -m dataset.synthesize --out data/generated_real_cf --from_cf data/cf_vessel --eyes 70

The second form starts from real colour photographs with vessel masks and renders only the other modalities.
"""
from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataset import appearance
from dataset.appearance import Scene
from dataset.vascular_tree import Eye, View, draw_vessels, grow_eye
from utils.errors import InputError
from utils.image_io import IMAGE_SUFFIXES, read_color, read_mask, write_image, write_text_atomically

MANIFEST = "synthesis.yaml"
FORMAT_VERSION = 1
# Keys of the random streams, so that no two draws share a stream.
ANATOMY, VIEW, LESIONS, CF, FA, OCT, OCTA, PHOTO = range(8)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Job:
    """One folder to write: eye (from 1), visit (from 0) and, if any, the real photograph and its mask."""

    root: Path
    eye: int
    visit: int
    seed: int
    size: int
    photograph: Path | None = None
    mask: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.eye}_{LETTERS[self.visit]}"

    def rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.eye, self.visit, stream])


def file_names(sample: str, size: int) -> dict[str, str]:
    """The files of one folder: role ('cf', 'fa', 'oct', 'seg', 'cf_clip', 'octa', 'seg_clip') to file name."""
    tag = "_512" if size == 512 else ""
    return {"cf": f"{sample}_cf{tag}.png", "fa": f"{sample}_fa_gen.png", "oct": f"{sample}_oct_gen.png",
            "seg": f"{sample}_seg.png", "cf_clip": f"{sample}_cf_clip{tag}.png", "octa": f"{sample}_octa_gen.png",
            "seg_clip": f"{sample}_seg_clip.png"}


# ------------------------------------------------------------------------------------------------ procedural scenes

def draw_view(eye: Eye, size: int, rng: np.random.Generator) -> View:
    """The camera of a fundus photograph: 30 to 50 degrees about the disc, the macula, between them or farther out."""
    frame_dd = rng.uniform(5.6, 9.5)
    kind = rng.choice(("disc", "macula", "between", "periphery"), p=(0.22, 0.3, 0.33, 0.15))
    if kind == "periphery":
        heading = rng.uniform(0, 2 * np.pi)
        centre = eye.fovea / 2 + rng.uniform(1.5, 3.0) * np.array([np.cos(heading), np.sin(heading)])
        frame_dd = min(frame_dd, 7.0)
    else:
        centre = eye.fovea * {"disc": 0.0, "macula": 0.95, "between": 0.5}[kind]
    return View(centre + rng.normal(0, 0.25, 2), size / frame_dd, size, rng.normal(0, 0.07))


def draw_clip_view(eye: Eye, view: View, rng: np.random.Generator) -> View:
    """The macular scan of an OCTA: 3 to 4.6 disc diameters (4.5 to 7 mm) within what the photograph shows."""
    side_dd = rng.uniform(3.0, 4.6)
    centre = eye.fovea * rng.choice((1.0, 0.85, 0.6), p=(0.6, 0.2, 0.2)) + rng.normal(0, 0.15, 2)
    return View(centre, view.size / side_dd, view.size, view.angle)


def draw_scene(eye: Eye, view: View, spots: dict[str, np.ndarray], least_width_dd: float,
               rng: np.random.Generator) -> Scene:
    """Rasterise one view of an eye.

    Args:
        eye: anatomy.
        view: camera.
        spots: lesions from :func:`draw_lesions`.
        least_width_dd: vessels thinner than this are invisible to a photograph (not in the mask).
        rng: draws the fundus background.
    """
    visible = (max(least_width_dd * view.px_per_dd, 0.55 * view.size / 512), np.inf)
    hidden = (0.0, visible[0])
    layers = {}
    for name, tree in (("artery", eye.artery), ("vein", eye.vein)):
        layers[name] = draw_vessels(tree, view, widths_px=visible)
        layers[f"{name}_core"] = draw_vessels(tree, view, scale=0.35, widths_px=visible) * (layers[name] > 0.6)
    fine = np.maximum(draw_vessels(eye.artery, view, widths_px=hidden), draw_vessels(eye.vein, view, widths_px=hidden))
    mask = np.maximum(draw_vessels(eye.artery, view, least_px=1.2, widths_px=visible),
                      draw_vessels(eye.vein, view, least_px=1.2, widths_px=visible)) >= 0.5
    size = view.size
    return Scene(view.px_per_dd, view.to_pixels(np.zeros(2)), eye.disc_axes * view.px_per_dd, view.to_pixels(eye.fovea),
                 eye.avascular_radius * view.px_per_dd, fine=fine, seg=mask, **layers,
                 background=appearance.fractal_noise(rng, size, size / (2.5 * view.px_per_dd), 3),
                 lesions=rasterise_lesions(spots, view, rng))


LESION_PLANS = {  # kind: (probability, mean count, smallest and largest radius in disc diameters)
    "haemorrhage": (0.3, 6, 0.03, 0.45), "exudate": (0.25, 25, 0.015, 0.08), "cotton_wool": (0.15, 3, 0.08, 0.2),
    "drusen": (0.2, 40, 0.015, 0.06), "laser_scar": (0.1, 120, 0.06, 0.1), "non_perfusion": (0.15, 3, 0.4, 1.3),
    "leakage": (0.2, 5, 0.05, 0.5)}


def draw_lesions(eye: Eye, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Lesions of one visit: kind to (n, 3) x, y, radius in disc diameters, in the retina frame."""
    spots = {}
    for kind, (probability, count, smallest, largest) in LESION_PLANS.items():
        if rng.random() > probability:
            continue
        n = 1 + rng.poisson(count)
        focus = eye.fovea * rng.uniform(0, 1.2) + rng.normal(0, 1.0, 2)
        spread = {"laser_scar": 2.6, "drusen": 0.8, "exudate": 0.7}.get(kind, 1.5)
        places = focus + rng.normal(0, spread, (n, 2))
        radii = np.exp(rng.uniform(np.log(smallest), np.log(largest), n))
        away = np.linalg.norm(places, axis=1) > 0.8
        if kind == "laser_scar":
            away &= np.linalg.norm(places - eye.fovea, axis=1) > 1.2
        spots[kind] = np.column_stack([places, radii])[away]
    return spots


def rasterise_lesions(spots: dict[str, np.ndarray], view: View, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Paint lesions with ragged edges. Returns kind to (size, size) float32 coverage."""
    layers = {}
    for kind, table in spots.items():
        canvas = np.zeros((view.size, view.size), np.float32)
        softness = {"leakage": 0.5, "cotton_wool": 0.3, "non_perfusion": 0.2}.get(kind, 0.12)
        for (x, y), radius in zip(view.to_pixels(table[:, :2]), table[:, 2] * view.px_per_dd):
            reach = int(2 * radius) + 3
            x0, y0 = max(int(x) - reach, 0), max(int(y) - reach, 0)
            patch = canvas[y0:max(int(y) + reach, 0), x0:max(int(x) + reach, 0)]
            if patch.size == 0:
                continue
            rows, cols = np.ogrid[y0:y0 + patch.shape[0], x0:x0 + patch.shape[1]]
            distance = np.hypot((cols - x) * rng.uniform(0.7, 1.3), (rows - y) * rng.uniform(0.7, 1.3)) / radius
            np.maximum(patch, np.clip((1.3 - distance) / 0.6, 0, 1), out=patch)
        ragged = canvas + 0.22 * appearance.smooth_noise(rng, view.size, view.size / (0.12 * view.px_per_dd)) * (canvas > 0)
        layers[kind] = np.clip((ragged - 0.5) / (2 * softness) + 0.5, 0, 1).astype(np.float32) * (canvas > 0)
    return layers


def procedural_pictures(job: Job) -> dict[str, np.ndarray]:
    """All pictures of one folder (role to array) for an invented eye."""
    # The anatomy has no visit in its seed: all letters of one number are the same eye.
    eye = grow_eye(np.random.default_rng([job.seed, job.eye, ANATOMY]))
    rng = job.rng(VIEW)
    view = draw_view(eye, job.size, rng)
    clip = draw_clip_view(eye, view, rng)
    least_width = rng.uniform(0.012, 0.022)
    spots = draw_lesions(eye, job.rng(LESIONS))
    scene, scene_clip = (draw_scene(eye, v, spots, least_width, rng) for v in (view, clip))
    return {"cf": appearance.render_cf(scene, job.rng(CF)), "fa": appearance.render_fa(scene, job.rng(FA)),
            "oct": appearance.render_oct(scene, job.rng(OCT)), "seg": scene.seg,
            "cf_clip": appearance.render_cf(scene_clip, job.rng(CF)),
            "octa": appearance.render_octa(scene_clip, job.rng(OCTA)), "seg_clip": scene_clip.seg}


# ------------------------------------------------------------------------------------------------------ writing

def _write_folder(job: Job) -> str:
    # Two processes share the cores; OpenCV's own threads would only get in each other's way.
    cv2.setNumThreads(1)
    pictures = procedural_pictures(job)
    for role, name in file_names(job.name, job.size).items():
        write_image(job.root / job.name / name, pictures[role])
    return job.name


def _run(jobs: list[Job], processes: int) -> Iterator[str]:
    if processes <= 1:
        yield from map(_write_folder, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_write_folder, jobs)


def write_generated_set(root: Path, eyes: int, seed: int = 0, size: int = 512, visits: int = 1, processes: int = 1,
                        from_cf: Path | None = None, overwrite: bool = False, progress: bool = True) -> list[str]:
    root = Path(root)
    jobs = [Job(root, eye, visit, seed, size) for eye in range(1, eyes + 1) for visit in range(visits)]
    for _ in tqdm(_run(jobs, processes), total=len(jobs), desc="synthesise", unit="sample", disable=not progress):
        pass
    return [job.name for job in jobs]
