"""Write a synthesised data set in the generated layout of :mod:`dataset.samples`."""

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
from synthesis.sources import SOURCE_KINDS, Source, find_sources
from utils.errors import InputError
from utils.files import write_text_atomically
from utils.image_files import read_color, read_mask, write_image

DEFAULT_EYES = 120  # of the built-in set, which `make demo` and train_loftr_v3.py write
MANIFEST = "synthesis.yaml"  # of a complete set
UNFINISHED = "synthesis.unfinished.yaml"  # of a set that is being written
SET_VERSION = 3  # to be increased whenever a change gives other pixels for the same seed


def _write_folder(job: Job) -> str:
    """Render and write one folder; returns its name."""
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
    """Apply a function to each job.

    Args:
        work: the function; it must be importable by name when there are several processes.
        jobs: its arguments.
        processes: worker processes; 1 works in this one. With more, the calling script needs an
            ``if __name__ == "__main__"`` guard.

    Returns:
        The results, in the order of the jobs.
    """
    if processes <= 1:
        yield from map(work, jobs)
        return
    # The processes already use all cores, so each runs OpenCV with one thread.
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

    Pixels depend on (seed, eye, visit, size) alone. A complete set of the same description is not
    written again; an interrupted one is written from the beginning.

    Args:
        root: folder of the set.
        eyes: number of generated eyes; 0 is allowed with real images.
        seed: non-negative.
        size: side of all images, pixels, at least 64.
        visits: renderings of each eye (letters A, B, ...), at most 26.
        processes: see :func:`run_in_processes`.
        real: kind ("cf", "fa", "octa") to folders of real images, see
            :func:`synthesis.sources.find_sources`; each image is one more eye.
        overwrite: replace a different synthesised set; other folders are never changed.
        progress: show a progress bar.

    Returns:
        The names of the folders, by eye, then by visit.

    Raises:
        InputError: numbers out of range, unusable real images, or a root with other content.
    """
    root, real = Path(root), real or {}
    _check_numbers(eyes, seed, size, visits, processes, least_eyes=0 if real else 1)
    jobs = _list_jobs(root, eyes, seed, size, visits, real)
    description = {
        "format": SET_VERSION,
        "procedural": eyes,
        "real": {kind: [str(Path(each).resolve()) for each in real[kind]] for kind in sorted(real)},
        "seed": seed,
        "eyes": len(jobs) // visits,
        "visits": visits,
        "size": size,
    }
    if not _is_complete(root, description, overwrite):
        _write_folders(root, jobs, description, processes, progress)
    return [job.name for job in jobs]


def _list_jobs(
    root: Path, eyes: int, seed: int, size: int, visits: int, real: dict[str, list[Path]]
) -> list[Job]:
    """The folders of a set: generated eyes first, then one eye for each real image."""
    sources: list[Source | None] = [None] * eyes
    for kind in SOURCE_KINDS:
        for folder in real.get(kind, []):
            sources += find_sources(kind, folder)
    return [
        Job(root=root, eye=eye, visit=visit, seed=seed, size=size, source=source)
        for eye, source in enumerate(sources, start=1)
        for visit in range(visits)
    ]


def _write_folders(
    root: Path, jobs: list[Job], description: dict[str, Any], processes: int, progress: bool
) -> None:
    """Write all folders of a set; ``MANIFEST`` replaces ``UNFINISHED`` when all are written."""
    text = yaml.safe_dump(description, sort_keys=False)
    write_text_atomically(root / UNFINISHED, text)
    done = run_in_processes(_write_folder, jobs, processes)
    for _ in tqdm(done, total=len(jobs), desc="synthesise", unit="sample", disable=not progress):
        pass
    write_text_atomically(root / MANIFEST, text)
    (root / UNFINISHED).unlink()


def _check_numbers(
    eyes: int, seed: int, size: int, visits: int, processes: int, least_eyes: int
) -> None:
    """Raise an ``InputError`` for a number out of its range."""
    for name, value, least, most in (
        ("eyes", eyes, least_eyes, 10**6),
        ("seed", seed, 0, 2**32 - 1),
        ("size", size, 64, 4096),
        ("visits", visits, 1, len(LETTERS)),
        ("processes", processes, 1, 256),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} = {value}: must lie between {least} and {most}.")


def _is_complete(root: Path, description: dict[str, Any], overwrite: bool) -> bool:
    """Whether the set is complete; otherwise prepares the folder for writing it.

    Raises:
        InputError: the root holds a different set, unless ``overwrite``, or anything else.
    """
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
            f"{root}: holds a different synthesised set ({changed}); take another folder or "
            "--overwrite."
        )
    for eye in range(1, int(old.get("eyes", 0)) + 1):
        for letter in LETTERS[: int(old.get("visits", 0))]:
            shutil.rmtree(root / f"{eye}_{letter}", ignore_errors=True)
    found.unlink()
    return False


def _read_description(path: Path) -> dict[str, Any]:
    """Content of ``MANIFEST`` or ``UNFINISHED``.

    Raises:
        InputError: not a mapping in YAML.
    """
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: unreadable; remove the folder or choose another one.") from error
    if not isinstance(description, dict):
        raise InputError(
            f"{path}: does not describe a synthesised set; remove the folder or choose another one."
        )
    return description


def contact_sheet(root: Path, ids: list[str], size: int, tile: int = 192) -> np.ndarray:
    """Arrange the images of folders, one row for each folder.

    Args:
        root: folder of the set.
        ids: names of the folders.
        size: side of the images, pixels.
        tile: side of each image in the sheet, pixels.

    Returns:
        (len(ids) * tile, 7 * tile, 3) float32 in [0, 1], columns cf, fa, oct, seg, cf_clip, octa,
        seg_clip.
    """
    rows = []
    for name in ids:
        paths = [root / name / file for file in file_names(name, size).values()]
        tiles = [_read_tile(path, size) for path in paths]
        rows.append(
            np.hstack([cv2.resize(t, (tile, tile), interpolation=cv2.INTER_AREA) for t in tiles])
        )
    return np.vstack(rows)


def _read_tile(path: Path, size: int) -> np.ndarray:
    """(H, W, 3) in [0, 1]; black for a missing file: samples from an OCTA have clips only."""
    if not path.is_file():
        return np.zeros((size, size, 3), np.float32)
    # A mask without a vessel is valid, but read_color refuses black images.
    return (
        np.repeat(read_mask(path)[..., None], 3, 2).astype(np.float32)
        if "_seg" in path.name
        else read_color(path)
    )
