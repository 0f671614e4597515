"""Write a synthesised set in the user's generated layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from tqdm import tqdm

from synthesis.eyes import (
    CF,
    FA,
    LETTERS,
    OCT,
    OCTA,
    SCENE,
    Job,
    file_names,
    procedural_pictures,
)
from synthesis.picture_scenes import source_pictures
from synthesis.sources import SOURCE_KINDS, find_sources
from utils.errors import InputError
from utils.files import write_text_atomically
from utils.image_files import read_color, read_mask, write_image

DEFAULT_EYES = 120  # of the built-in set, which `make demo` and train_loftr_v3.py write
MANIFEST = "synthesis.yaml"
UNFINISHED = "synthesis.unfinished.yaml"
SET_VERSION = 3  # count up whenever the same seed gives other pixels


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
        for kind in SOURCE_KINDS
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
