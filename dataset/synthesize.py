"""Write a *generated* data set: perfectly aligned CF, FA, OCT and OCTA pictures with vessel masks, from nothing.

    python -m dataset.synthesize --out data/generated --eyes 120
    python -m dataset.synthesize --out data/mixed --eyes 160 --from_cf CF --from_fa FA --from_octa OCTA

Real pictures can be added: colour photographs and OCTA with vessel masks, angiograms as they are. They are kept, and the
other modalities are rendered onto their vessels.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from tqdm import tqdm

from dataset import appearance
from dataset.appearance import FULL_DEPTH_DD, Scene
from dataset.lesions import draw_lesions, rasterise_lesions
from dataset.picture_scenes import KINDS, Source, find_sources, source_pictures
from dataset.vascular_tree import Eye, View, draw_vessels, grow_eye
from utils.errors import InputError
from utils.image_io import read_color, read_mask, write_image, write_text_atomically

MANIFEST = "synthesis.yaml"
UNFINISHED = "synthesis.unfinished.yaml"
SET_VERSION = 3  # count up whenever the same seed gives other pixels
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
        background=appearance.fractal_noise(rng, size, size / (2.5 * view.px_per_dd), 3),
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
    scene = draw_scene(eye, view, spots, least_width, appearance.round_field(job.size, rng), rng)
    # Enlarged, a photograph shows somewhat thinner vessels.
    scene_clip = draw_scene(eye, clip, spots, 0.85 * least_width, whole, rng)
    return {
        "cf": appearance.render_cf(scene, job.rng(CF)),
        "fa": appearance.render_fa(scene, job.rng(FA)),
        "oct": appearance.render_oct(scene, job.rng(OCT)),
        "seg": scene.seg,
        "cf_clip": appearance.render_cf(scene_clip, job.rng(CF)),
        "octa": appearance.render_octa(scene_clip, job.rng(OCTA)),
        "seg_clip": scene_clip.seg,
    }


# ------------------------------------------------------------------------------------------------------ writing


def _write_folder(job: Job) -> str:
    if job.source is None:
        pictures = procedural_pictures(job)
    else:
        streams = {"scene": SCENE, "cf": CF, "fa": FA, "oct": OCT, "octa": OCTA}
        pictures = source_pictures(
            job.source, job.size, {name: job.rng(key) for name, key in streams.items()}
        )
    names = file_names(job.name, job.size)
    for role, picture in pictures.items():
        write_image(job.root / job.name / names[role], picture)
    return job.name


def run_in_processes(work: Callable[[Any], Any], jobs: list[Any], processes: int) -> Iterator[Any]:
    """Results of a function for each job, in order. One process is this one; more need the caller's script to have a main
    guard."""
    if processes <= 1:
        yield from map(work, jobs)
        return
    # The processes share the cores already; OpenCV's own threads would only get in their way.
    with get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(work, jobs)


def write_generated_set(
    root: Path,
    eyes: int,
    seed: int = 0,
    size: int = 512,
    visits: int = 1,
    processes: int = 1,
    real: dict[str, list[Path]] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[str]:
    """Write ``root/<num>_<letter>/`` for every eye and visit, then ``root/synthesis.yaml``.

    The pixels of a folder depend only on (seed, eye, visit, size). A complete set of the same description is left as it
    is; an interrupted run is taken up again from the beginning.

    Args:
        root: folder of the set.
        eyes: number of invented eyes; 0 is allowed where there are real pictures.
        seed: non-negative.
        size: side of all pictures in pixels, at least 64.
        visits: renderings of each eye (letters A, B, ...), at most 26.
        processes: worker processes; 1 works in this one. More need the caller's script to have a main guard.
        real: kind ("cf", "fa", "octa") to folders of real pictures, see :func:`find_sources`; each is one more eye.
        overwrite: replace a different synthesised set. Folders that were not synthesised are never touched.
        progress: show a progress bar.

    Returns:
        The folder names (ids), eye by eye.

    Raises:
        InputError: senseless numbers, unusable real pictures, or a root that holds something else.
    """
    root = Path(root)
    real = real or {}
    _check_numbers(eyes, seed, size, visits, processes, least_eyes=0 if real else 1)
    sources = [None] * eyes + [
        source
        for kind in KINDS
        for folder in real.get(kind, [])
        for source in find_sources(kind, folder)
    ]
    jobs = [
        Job(root, eye, visit, seed, size, source)
        for eye, source in enumerate(sources, start=1)
        for visit in range(visits)
    ]
    ids = [job.name for job in jobs]
    description = {
        "format": SET_VERSION,
        "procedural": eyes,
        "real": {
            kind: [str(Path(folder).resolve()) for folder in real[kind]] for kind in sorted(real)
        },
        "seed": seed,
        "eyes": len(sources),
        "visits": visits,
        "size": size,
    }
    if _is_complete(root, description, overwrite):
        return ids
    write_text_atomically(root / UNFINISHED, yaml.safe_dump(description, sort_keys=False))
    done = run_in_processes(_write_folder, jobs, processes)
    for _ in tqdm(done, total=len(jobs), desc="synthesise", unit="sample", disable=not progress):
        pass
    write_text_atomically(root / MANIFEST, yaml.safe_dump(description, sort_keys=False))
    (root / UNFINISHED).unlink()
    return ids


def _check_numbers(
    eyes: int, seed: int, size: int, visits: int, processes: int, least_eyes: int
) -> None:
    for name, value, least, most in (
        ("eyes", eyes, least_eyes, 10**6),
        ("seed", seed, 0, 2**32 - 1),
        ("size", size, 64, 4096),
        ("visits", visits, 1, len(LETTERS)),
        ("processes", processes, 1, 256),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} = {value}: must lie between {least} and {most}.")


def _is_complete(root: Path, description: dict, overwrite: bool) -> bool:
    """True if the set is already there. Clears the way for a new one; refuses to mix with anything else."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; give a folder to write the set into.")
    found = next((root / name for name in (MANIFEST, UNFINISHED) if (root / name).is_file()), None)
    if found is None:
        if root.is_dir() and any(root.iterdir()):
            raise InputError(
                f"{root}: not empty and not a synthesised set; choose a new or empty folder."
            )
        return False
    old = _read_description(found)
    if old == description:
        return found.name == MANIFEST
    if not overwrite:
        changed = ", ".join(
            f"{key} {old.get(key)} -> {new}"
            for key, new in description.items()
            if old.get(key) != new
        )
        raise InputError(
            f"{root}: holds a different synthesised set ({changed}); take another folder or --overwrite."
        )
    for eye in range(1, int(old.get("eyes", 0)) + 1):
        for letter in LETTERS[: int(old.get("visits", 0))]:
            shutil.rmtree(root / f"{eye}_{letter}", ignore_errors=True)
    found.unlink()
    return False


def _read_description(path: Path) -> dict:
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: unreadable; remove the folder or choose another one.") from error
    if not isinstance(description, dict):
        raise InputError(
            f"{path}: does not describe a synthesised set; remove the folder or choose another one."
        )
    return description


# -------------------------------------------------------------------------------------------------- command line


def contact_sheet(root: Path, ids: list[str], size: int, tile: int = 192) -> np.ndarray:
    """(len(ids) * tile, 7 * tile, 3) in [0, 1]: a row a folder, columns cf, fa, oct, seg, cf_clip, octa, seg_clip."""
    rows = []
    for name in ids:
        paths = [root / name / file for file in file_names(name, size).values()]
        tiles = [_read_tile(path, size) for path in paths]
        rows.append(
            np.hstack([cv2.resize(t, (tile, tile), interpolation=cv2.INTER_AREA) for t in tiles])
        )
    return np.vstack(rows)


def _read_tile(path: Path, size: int) -> np.ndarray:
    """(H, W, 3) in [0, 1]; black where a folder lacks the picture, as those made from an OCTA lack the whole view."""
    if not path.is_file():
        return np.zeros((size, size, 3), np.float32)
    # A mask without a vessel is legitimate, so masks are read as masks.
    return (
        np.repeat(read_mask(path)[..., None], 3, 2).astype(np.float32)
        if "_seg" in path.name
        else read_color(path)
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line entry. Returns the exit code: 0, or 2 for a user's fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/generated"), help="folder of the set"
    )
    parser.add_argument(
        "--eyes", type=int, help="eyes to invent (default 120, with real pictures 0)"
    )
    parser.add_argument(
        "--visits", type=int, default=1, help="renderings of each eye (letters A, B, ...)"
    )
    parser.add_argument("--size", type=int, default=512, help="side of all pictures in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--from_cf",
        type=Path,
        nargs="+",
        help="real colour photographs: folder with images/ and masks/",
    )
    parser.add_argument(
        "--from_fa",
        type=Path,
        nargs="+",
        help="real angiograms: folder of pictures; their vessels are found",
    )
    parser.add_argument(
        "--from_octa", type=Path, nargs="+", help="real OCTA: folder with images/ and labels/"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a different synthesised set"
    )
    parser.add_argument(
        "--show", type=Path, metavar="SHEET.png", help="also write a contact sheet of the first 12"
    )
    given = parser.parse_args(arguments)
    real = {kind: folders for kind in KINDS if (folders := getattr(given, f"from_{kind}"))}
    eyes = given.eyes if given.eyes is not None else (0 if real else 120)
    try:
        ids = write_generated_set(
            given.out,
            eyes,
            given.seed,
            given.size,
            given.visits,
            given.processes,
            real,
            given.overwrite,
        )
        if given.show is not None:
            write_image(given.show, contact_sheet(given.out, ids[:12], given.size))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(ids)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
