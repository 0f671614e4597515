"""Write a *generated* data set: perfectly aligned CF, FA, OCT and OCTA pictures with vessel masks, from nothing.

    python -m dataset.synthesize --out data/generated --eyes 120
    python -m dataset.synthesize --out data/generated_real_cf --from_cf data/cf_vessel --eyes 70

The second form starts from real colour photographs with vessel masks and renders only the other modalities.
"""
from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import yaml
from skimage.morphology import skeletonize
from tqdm import tqdm

from dataset import appearance
from dataset.appearance import Scene
from dataset.vascular_tree import Eye, View, draw_vessels, grow_eye, grow_twigs
from utils.errors import InputError
from utils.image_io import IMAGE_SUFFIXES, read_color, read_mask, write_image, write_text_atomically

MANIFEST = "synthesis.yaml"
UNFINISHED = "synthesis.unfinished.yaml"
SET_VERSION = 2  # count up whenever the same seed gives other pixels
# Keys of the random streams, so that no two draws share a stream.
ANATOMY, VIEW, LESIONS, CF, FA, OCT, OCTA, PHOTO = range(8)
MIN_CLIP_PX = 64
LEAST_VISIBLE_PX = 0.55
FULL_DEPTH_DD = 0.06  # a vessel this wide absorbs like the largest
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
               field: np.ndarray, rng: np.random.Generator) -> Scene:
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
        layers[f"{name}_core"] = draw_vessels(tree, view, scale=0.35, widths_px=visible) * (layers[name] > 0.6)
    fine = np.maximum(draw_vessels(eye.artery, view, widths_px=hidden), draw_vessels(eye.vein, view, widths_px=hidden))
    mask = np.maximum(draw_vessels(eye.artery, view, least_px=1.2, widths_px=visible),
                      draw_vessels(eye.vein, view, least_px=1.2, widths_px=visible)) >= 0.5
    # Drawn wider than the vessels, so that their blurred edges have a depth too.
    depth = np.maximum(*(draw_vessels(tree, view, 1.5, least_px=6.0, widths_px=visible, full_dd=FULL_DEPTH_DD)
                         for tree in (eye.artery, eye.vein)))
    size = view.size
    return Scene(view.px_per_dd, view.to_pixels(np.zeros(2)), eye.disc_axes * view.px_per_dd, view.to_pixels(eye.fovea),
                 eye.avascular_radius * view.px_per_dd, fine=fine, depth=depth, **layers,
                 seg=mask & (field > 0.5), field=field,
                 background=appearance.fractal_noise(rng, size, size / (2.5 * view.px_per_dd), 3),
                 lesions=rasterise_lesions(spots, view, rng))


LESION_PLANS = {  # kind: (probability, mean count, smallest and largest radius in disc diameters)
    "haemorrhage": (0.3, 6, 0.03, 0.45), "exudate": (0.25, 25, 0.015, 0.08), "cotton_wool": (0.15, 3, 0.08, 0.2),
    "drusen": (0.2, 40, 0.015, 0.06), "laser_scar": (0.1, 120, 0.06, 0.1), "non_perfusion": (0.15, 3, 0.4, 1.3),
    "leakage": (0.2, 5, 0.05, 0.5)}


def draw_lesions(fovea: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Lesions of one visit: kind to (n, 3) x, y, radius in disc diameters, in the retina frame."""
    spots = {}
    for kind, (probability, count, smallest, largest) in LESION_PLANS.items():
        if rng.random() > probability:
            continue
        n = 1 + rng.poisson(count)
        focus = fovea * rng.uniform(0, 1.2) + rng.normal(0, 1.0, 2)
        spread = {"laser_scar": 2.6, "drusen": 0.8, "exudate": 0.7}.get(kind, 1.5)
        places = focus + rng.normal(0, spread, (n, 2))
        radii = np.exp(rng.uniform(np.log(smallest), np.log(largest), n))
        away = np.linalg.norm(places, axis=1) > 0.8
        if kind == "laser_scar":
            away &= np.linalg.norm(places - fovea, axis=1) > 1.2
        spots[kind] = np.column_stack([places, radii])[away]
    return spots


def rasterise_lesions(spots: dict[str, np.ndarray], view: View, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Paint lesions with ragged edges. Returns kind to (size, size) float32 coverage."""
    layers = {}
    for kind, table in spots.items():
        canvas = np.zeros((view.size, view.size), np.float32)
        softness = {"leakage": 0.5, "cotton_wool": 0.5, "non_perfusion": 0.2}.get(kind, 0.12)
        for (x, y), radius in zip(view.to_pixels(table[:, :2]), table[:, 2] * view.px_per_dd, strict=True):
            reach = int(2 * radius) + 3
            x0, y0 = max(int(x) - reach, 0), max(int(y) - reach, 0)
            patch = canvas[y0:max(int(y) + reach, 0), x0:max(int(x) + reach, 0)]
            if patch.size == 0:
                continue
            rows, cols = np.ogrid[y0:y0 + patch.shape[0], x0:x0 + patch.shape[1]]
            distance = np.hypot((cols - x) * rng.uniform(0.7, 1.3), (rows - y) * rng.uniform(0.7, 1.3)) / radius
            np.maximum(patch, np.clip((1.3 - distance) / 0.6, 0, 1), out=patch)
        ragged = canvas + 0.22 * appearance.smooth_noise(rng, view.size, view.size / (0.12 * view.px_per_dd))
        layers[kind] = np.clip((ragged - 0.5) / (2 * softness) + 0.5, 0, 1).astype(np.float32) * (canvas > 0)
    return layers


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
    scene = draw_scene(eye, view, spots, least_width, appearance.round_field(job.size, rng), rng)
    # Enlarged, a photograph shows somewhat thinner vessels.
    scene_clip = draw_scene(eye, clip, spots, 0.85 * least_width, whole, rng)
    return {"cf": appearance.render_cf(scene, job.rng(CF)), "fa": appearance.render_fa(scene, job.rng(FA)),
            "oct": appearance.render_oct(scene, job.rng(OCT)), "seg": scene.seg,
            "cf_clip": appearance.render_cf(scene_clip, job.rng(CF)),
            "octa": appearance.render_octa(scene_clip, job.rng(OCTA)), "seg_clip": scene_clip.seg}


# ------------------------------------------------------------------------------------------- scenes from photographs

def find_photographs(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs (photograph, vessel mask) of the same stem in ``folder`` or in its subfolders, in order of path.

    Raises:
        InputError: no ``images`` and ``masks`` folders, or a photograph without its mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold images/ and masks/.")
    sets = [folder] if (folder / "images").is_dir() else sorted(p.parent for p in folder.glob("*/images"))
    pairs = []
    for one in sets:
        masks = {p.stem: p for p in sorted((one / "masks").glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
        for image in sorted(p for p in (one / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
            if image.stem not in masks:
                raise InputError(f"{image}: no vessel mask of that name in {one / 'masks'}; add it or remove this.")
            pairs.append((image, masks[image.stem]))
    if not pairs:
        raise InputError(f"{folder}: no images/ with pictures, here or one folder below.")
    return pairs


@dataclass(frozen=True)
class Landmarks:
    """Where the anatomy is thought to lie in a photograph, in its pixels: disc (x, y), fovea (x, y), magnification."""

    disc: np.ndarray
    fovea: np.ndarray
    px_per_dd: float

    def moved(self, corner: np.ndarray, scale: float) -> Landmarks:
        """The same in a picture that starts at pixel ``corner`` and is enlarged by ``scale``."""
        disc, fovea = ((point - corner + 0.5) * scale - 0.5 for point in (self.disc, self.fovea))
        return Landmarks(disc, fovea, self.px_per_dd * scale)


def find_field(photograph: np.ndarray) -> np.ndarray:
    """(H, W) float32 in {0, 1}: the largest region that is not black; the whole frame if there is no black rim."""
    lit = (photograph.max(axis=2) > 0.06).astype(np.uint8)
    lit = cv2.morphologyEx(lit, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(lit)
    if count < 2:
        return np.ones(lit.shape, np.float32)
    return (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.float32)


def background_of(photograph: np.ndarray, usable: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) mean of red and green smoothed over ``sigma`` pixels, from usable (H, W) pixels only."""
    level = photograph[..., :2].mean(axis=2)
    weight = appearance.blur(usable, sigma)
    return appearance.blur(level * usable, sigma) / np.maximum(weight, 1e-3)


def find_landmarks(photograph: np.ndarray, mask: np.ndarray) -> Landmarks:
    """Guess disc, fovea and magnification: the disc is bright where the large vessels meet, the fovea dark and bare.

    Only the rendering of disc and macula hangs on the guess, never the alignment, so a miss does no harm.

    Args:
        photograph: (H, W, 3) in [0, 1].
        mask: (H, W) bool, vessels.
    """
    field = find_field(photograph)
    side = max(mask.shape)
    calibre = 2 * cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    # The widest vessels are about a tenth of a disc diameter wide; views of 28 to 55 degrees are possible.
    widest = np.percentile(calibre[mask], 98) if mask.any() else 0.0
    px_per_dd = float(np.clip(widest / 0.1, side / 10, side / 5.6))
    well_inside = cv2.erode(field, np.ones((int(0.5 * px_per_dd),) * 2), borderValue=0)
    local = background_of(photograph, field, 0.25 * px_per_dd) - background_of(photograph, field, 1.5 * px_per_dd)
    meeting = appearance.blur(calibre, 0.4 * px_per_dd)
    score = local / (local.std() + 1e-6) + 1.5 * meeting / (meeting.std() + 1e-6)
    disc = _place_of_maximum(np.where(well_inside > 0, score, -np.inf))
    x, y = np.meshgrid(np.arange(mask.shape[1]), np.arange(mask.shape[0]))
    across, down = (x - disc[0]) / px_per_dd, (y - disc[1]) / px_per_dd
    expected = ((np.abs(across) - 2.5) / 0.5) ** 2 + ((down - 0.2) / 0.5) ** 2
    bare = -local / (local.std() + 1e-6) - meeting / (meeting.std() + 1e-6) - expected
    fovea = _place_of_maximum(np.where(well_inside > 0, bare, -np.inf))
    return Landmarks(disc, fovea, px_per_dd)


def _place_of_maximum(values: np.ndarray) -> np.ndarray:
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return np.array([column, row], float)


def split_arteries_veins(photograph: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W) bool, True where a vessel is probably an artery: its segment is paler than the median segment.

    A segment is a piece of centreline between junctions, so a vessel does not change its kind from pixel to pixel.
    """
    line = skeletonize(mask)
    neighbours = cv2.filter2D(line.astype(np.float32), -1, np.ones((3, 3), np.float32), borderType=cv2.BORDER_CONSTANT)
    junction = cv2.dilate((line & (neighbours > 3.5)).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    count, label = cv2.connectedComponents((line & ~junction).astype(np.uint8), connectivity=8)
    if count < 3:
        return np.zeros_like(mask)
    green = photograph[..., 1]
    contrast = green - appearance.blur(green, 0.03 * max(mask.shape))
    length = np.bincount(label.ravel(), minlength=count)
    mean = np.bincount(label.ravel(), contrast.ravel(), minlength=count) / np.maximum(length, 1)
    artery = mean > np.median(mean[1:])
    artery[0] = False
    _, nearest = cv2.distanceTransformWithLabels((label == 0).astype(np.uint8), cv2.DIST_L2, 3,
                                                 labelType=cv2.DIST_LABEL_PIXEL)
    of_pixel = np.zeros(nearest.max() + 1, bool)
    of_pixel[nearest[label > 0]] = artery[label[label > 0]]
    return of_pixel[nearest] & mask


def draw_between(mask: np.ndarray, view: View, marks: Landmarks, avascular: float,
                 rng: np.random.Generator) -> np.ndarray:
    """(size, size) coverage of invented thin vessels that sprout from the mask's; only FA and OCTA show them."""
    rows, columns = np.nonzero(skeletonize(mask))
    every = max(1, int(0.1 * marks.px_per_dd))
    chosen = rng.permutation(len(rows))[::every]
    lines = (np.column_stack([columns, rows])[chosen] - marks.disc) / marks.px_per_dd
    twigs = grow_twigs(lines, (marks.fovea - marks.disc) / marks.px_per_dd, avascular, rng)
    return draw_vessels(twigs, view, widths_px=(1e-6, np.inf))


def photograph_scene(photograph: np.ndarray, coverage: np.ndarray, marks: Landmarks,
                     rng: np.random.Generator) -> Scene:
    """The scene shown by a square real photograph.

    Args:
        photograph: (size, size, 3) in [0, 1].
        coverage: (size, size) vessel mask resampled, in [0, 1].
        marks: in pixels of this picture.
        rng: draws what a photograph does not show: capillary-free zone, leakage, non-perfusion.
    """
    size, mask = len(coverage), coverage >= 0.35  # thin vessels must not break into dashes
    artery = split_arteries_veins(photograph, mask)
    artery_share = appearance.blur(artery.astype(np.float32), 1.0) / np.maximum(
        appearance.blur(mask.astype(np.float32), 1.0), 1e-3)
    artery_share = np.clip(artery_share, 0, 1)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    half_width = cv2.dilate(depth, np.ones((9, 9), np.uint8))
    core = ((depth > 0.6 * half_width) & (half_width > 1.2)).astype(np.float32)
    column = np.clip(2 * half_width / (FULL_DEPTH_DD * marks.px_per_dd), 0.125, 1)
    field = find_field(photograph)
    slow = background_of(photograph, field * (1 - cv2.dilate(coverage, np.ones((3, 3)))), 0.12 * marks.px_per_dd)
    slow = (slow - slow[field > 0].mean()) / (slow[field > 0].std() + 1e-6) * field
    background = 0.6 * slow + 0.8 * appearance.fractal_noise(rng, size, size / (2.5 * marks.px_per_dd), 3)
    spots = {kind: table for kind, table in draw_lesions((marks.fovea - marks.disc) / marks.px_per_dd, rng).items()
             if kind in ("leakage", "non_perfusion")}
    view = View(((size - 1) / 2 - marks.disc) / marks.px_per_dd, marks.px_per_dd, size, 0.0)
    avascular = rng.uniform(0.18, 0.34)
    fine = draw_between(mask, view, marks, avascular, rng) * field
    return Scene(marks.px_per_dd, marks.disc, np.full(2, 0.5 * marks.px_per_dd), marks.fovea,
                 avascular * marks.px_per_dd, artery=coverage * artery_share,
                 vein=coverage * (1 - artery_share), artery_core=core * artery_share,
                 vein_core=core * (1 - artery_share), fine=fine, depth=column, seg=mask,
                 field=field, background=background, lesions=rasterise_lesions(spots, view, rng))


def photograph_pictures(job: Job) -> dict[str, np.ndarray]:
    """All pictures of one folder (role to array) for a real photograph: CF and masks as they are, the rest rendered."""
    photograph, mask = read_color(job.photograph), read_mask(job.mask)
    if mask.shape != photograph.shape[:2]:
        raise InputError(f"{job.mask}: {mask.shape[::-1]} px, but {job.photograph.name} has "
                         f"{photograph.shape[1::-1]} px; they must be aligned.")
    if not mask.any():
        raise InputError(f"{job.mask}: shows no vessel; remove this image or correct its mask.")
    marks = find_landmarks(photograph, mask)
    pictures = {}
    rng = job.rng(PHOTO)
    side = max(mask.shape)
    frames = {"": (np.array(mask.shape[::-1]) - side) // 2, "_clip": None}
    for suffix, corner in frames.items():
        if suffix:
            side = int(np.clip(rng.uniform(3.0, 4.6) * marks.px_per_dd, MIN_CLIP_PX, min(mask.shape)))
            corner = np.clip(marks.fovea - side / 2, 0, np.array(mask.shape[::-1]) - side).astype(int)
        picture, coverage = (square(a, corner, side, job.size) for a in (photograph, mask.astype(np.float32)))
        scene = photograph_scene(picture, coverage, marks.moved(corner, job.size / side), rng)
        pictures |= {f"cf{suffix}": picture, f"seg{suffix}": scene.seg}
        renderers = {"octa": (appearance.render_octa, OCTA)} if suffix else {
            "fa": (appearance.render_fa, FA), "oct": (appearance.render_oct, OCT)}
        # Beyond the photograph's field no vessels are known; showing bare retina there would teach a falsehood.
        pictures |= {role: render(scene, job.rng(key)) * scene.field for role, (render, key) in renderers.items()}
    return pictures


def square(image: np.ndarray, corner: np.ndarray, side: int, size: int) -> np.ndarray:
    """Cut the square of ``side`` pixels starting at ``corner`` (x, y), black where there is no image, and resize it."""
    height, width = image.shape[:2]
    x, y = (int(v) for v in corner)
    before, after = (max(-y, 0), max(-x, 0)), (max(y + side - height, 0), max(x + side - width, 0))
    padded = cv2.copyMakeBorder(image, before[0], after[0], before[1], after[1], cv2.BORDER_CONSTANT)
    cut = padded[max(y, 0):max(y, 0) + side, max(x, 0):max(x, 0) + side]
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    return np.clip(cv2.resize(cut, (size, size), interpolation=method), 0, 1)


# ------------------------------------------------------------------------------------------------------ writing

def _write_folder(job: Job) -> str:
    pictures = procedural_pictures(job) if job.photograph is None else photograph_pictures(job)
    for role, name in file_names(job.name, job.size).items():
        write_image(job.root / job.name / name, pictures[role])
    return job.name


def _run(jobs: list[Job], processes: int) -> Iterator[str]:
    if processes <= 1:
        yield from map(_write_folder, jobs)
        return
    # The processes share the cores already; OpenCV's own threads would only get in their way.
    with get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(_write_folder, jobs)


def write_generated_set(root: Path, eyes: int, seed: int = 0, size: int = 512, visits: int = 1, processes: int = 1,
                        from_cf: Path | None = None, overwrite: bool = False, progress: bool = True) -> list[str]:
    """Write ``root/<num>_<letter>/`` for every eye and visit, then ``root/synthesis.yaml``.

    The pixels of a folder depend only on (seed, eye, visit, size). A complete set of the same description is left as it
    is; an interrupted run is taken up again from the beginning.

    Args:
        root: folder of the set.
        eyes: number of eyes; with ``from_cf`` at most this many photographs, in order of name.
        seed: non-negative.
        size: side of all pictures in pixels, at least 64.
        visits: renderings of each eye (letters A, B, ...), at most 26.
        processes: worker processes; 1 works in this one. More need the caller's script to have a main guard.
        from_cf: folder with ``images`` and ``masks``, or a folder of such folders; None invents the vessels.
        overwrite: replace a different synthesised set. Folders that were not synthesised are never touched.
        progress: show a progress bar.

    Returns:
        The folder names (ids), eye by eye.

    Raises:
        InputError: senseless numbers, unusable ``from_cf``, or a root that holds something else.
    """
    root = Path(root)
    _check_numbers(eyes, seed, size, visits, processes)
    sources = find_photographs(from_cf)[:eyes] if from_cf is not None else [(None, None)] * eyes
    jobs = [Job(root, eye, visit, seed, size, *source)
            for eye, source in enumerate(sources, start=1) for visit in range(visits)]
    ids = [job.name for job in jobs]
    description = {"format": SET_VERSION, "source": "procedural" if from_cf is None else str(Path(from_cf).resolve()),
                   "seed": seed, "eyes": len(sources), "visits": visits, "size": size}
    if _is_complete(root, description, overwrite):
        return ids
    write_text_atomically(root / UNFINISHED, yaml.safe_dump(description, sort_keys=False))
    for _ in tqdm(_run(jobs, processes), total=len(jobs), desc="synthesise", unit="sample", disable=not progress):
        pass
    write_text_atomically(root / MANIFEST, yaml.safe_dump(description, sort_keys=False))
    (root / UNFINISHED).unlink()
    return ids


def _check_numbers(eyes: int, seed: int, size: int, visits: int, processes: int) -> None:
    for name, value, least, most in (("eyes", eyes, 1, 10**6), ("seed", seed, 0, 2**32 - 1), ("size", size, 64, 4096),
                                     ("visits", visits, 1, len(LETTERS)), ("processes", processes, 1, 256)):
        if not least <= value <= most:
            raise InputError(f"{name} = {value}: must lie between {least} and {most}.")


def _is_complete(root: Path, description: dict, overwrite: bool) -> bool:
    """True if the set is already there. Clears the way for a new one; refuses to mix with anything else."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; give a folder to write the set into.")
    found = next((root / name for name in (MANIFEST, UNFINISHED) if (root / name).is_file()), None)
    if found is None:
        if root.is_dir() and any(root.iterdir()):
            raise InputError(f"{root}: not empty and not a synthesised set; choose a new or empty folder.")
        return False
    old = _read_description(found)
    if old == description:
        return found.name == MANIFEST
    if not overwrite:
        changed = ", ".join(f"{key} {old.get(key)} -> {new}" for key, new in description.items() if old.get(key) != new)
        raise InputError(f"{root}: holds a different synthesised set ({changed}); take another folder or --overwrite.")
    for eye in range(1, int(old.get("eyes", 0)) + 1):
        for letter in LETTERS[:int(old.get("visits", 0))]:
            shutil.rmtree(root / f"{eye}_{letter}", ignore_errors=True)
    found.unlink()
    return False


def _read_description(path: Path) -> dict:
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: unreadable; remove the folder or choose another one.") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: does not describe a synthesised set; remove the folder or choose another one.")
    return description


# -------------------------------------------------------------------------------------------------- command line

def contact_sheet(root: Path, ids: list[str], size: int, tile: int = 192) -> np.ndarray:
    """(len(ids) * tile, 7 * tile, 3) in [0, 1]: a row a folder, columns cf, fa, oct, seg, cf_clip, octa, seg_clip."""
    rows = []
    for name in ids:
        paths = [root / name / file for file in file_names(name, size).values()]
        # A mask without a vessel is legitimate, so masks are read as masks.
        tiles = [np.repeat(read_mask(p)[..., None], 3, 2).astype(np.float32) if "_seg" in p.name else read_color(p)
                 for p in paths]
        rows.append(np.hstack([cv2.resize(t, (tile, tile), interpolation=cv2.INTER_AREA) for t in tiles]))
    return np.vstack(rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry. Returns the exit code: 0, or 2 for a user's fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/generated"), help="folder of the set")
    parser.add_argument("--eyes", type=int, help="eyes to write (default 120; with --from_cf all photographs)")
    parser.add_argument("--visits", type=int, default=1, help="renderings of each eye (letters A, B, ...)")
    parser.add_argument("--size", type=int, default=512, help="side of all pictures in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--from_cf", type=Path, help="folder with images/ and masks/ of real colour photographs")
    parser.add_argument("--overwrite", action="store_true", help="replace a different synthesised set")
    parser.add_argument("--show", type=Path, metavar="SHEET.png", help="also write a contact sheet of the first 12")
    given = parser.parse_args(arguments)
    eyes = given.eyes if given.eyes is not None else (120 if given.from_cf is None else 10**6)
    try:
        ids = write_generated_set(given.out, eyes, given.seed, given.size, given.visits, given.processes, given.from_cf,
                                  given.overwrite)
        if given.show is not None:
            write_image(given.show, contact_sheet(given.out, ids[:12], given.size))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(ids)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
