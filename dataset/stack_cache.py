"""Decoded samples, kept on disk for all processes and runs.

Decoding the images of a sample and finding its junctions takes ten times as long as cutting a view
from the result, so each sample is decoded once. Its stack is then read by memory mapping: the
operating system keeps what is in use in memory, once for all processes.

An entry is a file ``<xx>/<digest>.stack``. Its name follows from which files the sample has and how
it is decoded; its header says of which content of these files (sizes, times of change), and of
which code, it was made. Anything else than expected there is replaced. Files are written to a
temporary name and renamed, so several processes may build the same entry.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import time
import zlib
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import scipy
import skimage
import torch
from tqdm import tqdm

from dataset.view_sources import ViewSource
from utils.errors import InputError
from utils.files import write_bytes_atomically

HEADER_BYTES = 4096  # one page of memory, so that the stack begins at a page
MIN_FREE_BYTES = 1 << 30  # left free on the disk, chosen by hand
ENTRIES_PER_SCAN = 32  # written by one process before it measures the folder again
KEPT_SHARE = 0.9  # of the bound: so much is left when old entries are removed
# Whatever turns files into stacks: a change of it makes every entry again.
SOURCES = (
    "dataset/samples.py",
    "dataset/teaching_samples.py",
    "dataset/junctions.py",
    "dataset/ridge_labels.py",
    "geometry/field_of_view.py",
    "geometry/rasters.py",
    "geometry/curved_transforms.py",
    "geometry/matrices.py",
    "geometry/points.py",
    "geometry/transforms.py",
    "utils/image_files.py",
)


class LoadedStack(NamedTuple):
    """A sample as loaded.

    Attributes:
        stack: (6, H, W) uint8, see :func:`dataset.samples.load_sample`; must not be written to.
        tolerance_px: radius within which the alignment is known, pixels of the stack.
    """

    stack: torch.Tensor
    tolerance_px: float


class _Damaged(Exception):
    """An entry that was not written by this program, or not as a whole."""


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/retinal-registration/stacks``, by default below ``~/.cache``.

    Raises:
        InputError: no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification of XDG says to ignore relative paths
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError as error:
            raise InputError(
                "data.cache_gb: no home folder to keep decoded samples in; set XDG_CACHE_HOME to "
                "a folder, or data.cache_gb to 0."
            ) from error
    return Path(base) / "retinal-registration" / "stacks"


@cache
def code_fingerprint() -> str:
    """Digest of everything that turns files into stacks: own code and libraries."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((root / name).read_bytes())
    digest.update(repr([each.__version__ for each in (cv2, np, scipy, skimage, torch)]).encode())
    return digest.hexdigest()


def _digest(parts: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class StackCache:
    """Loads samples through the cache.

    Args:
        max_gb: bound of the folder, GB (2^30 bytes); 0 keeps nothing on disk. Where it is reached,
            entries that were not used since this process began are removed, the oldest use first;
            if these do not suffice, further samples are decoded again whenever they are needed.
        memory_mb: samples that are not on disk are kept in memory, so many MB in each process;
            the least recently used leave.
        folder: of the entries; None takes :func:`default_folder`.
    """

    def __init__(self, max_gb: float = 0.0, memory_mb: int = 512, folder: Path | None = None):
        self.max_bytes = int(max_gb * 2**30)
        self.memory_bytes = memory_mb * 2**20
        self.folder = (folder or default_folder()) if self.max_bytes else None
        self._started = time.time()
        self._writes = True
        self._damaged: set[str] = set()  # entries to be made again
        self._memory: OrderedDict[str, LoadedStack] = OrderedDict()
        self._trusted: set[tuple[str, str]] = set()  # entries whose checksum was right
        self._total: int | None = None  # bytes in the folder
        self._written = 0  # entries since the folder was measured

    def __str__(self) -> str:
        """Where decoded samples are kept, in words."""
        if self.folder is None:
            return f"in memory, at most {self.memory_bytes >> 20} MB in each process"
        return f"in {self.folder}, at most {self.max_bytes / 2**30:g} GB"

    def load(self, source: ViewSource, long_side: int, junction_sigma_px: float) -> LoadedStack:
        """A sample, decoded or as decoded before.

        Args:
            source: the sample.
            long_side: of its stack, pixels.
            junction_sigma_px: standard deviation of a junction in the heatmap, pixels of the stack.

        Raises:
            InputError: unreadable files; the message names them.
        """
        try:
            place, content = source.provenance()
        except OSError:
            # A file is missing or cannot be reached: reading it says why.
            return _decode(source, long_side, junction_sigma_px)
        name = _digest((*place, str(long_side), repr(float(junction_sigma_px))))
        made_of = _digest((*content, code_fingerprint()))
        if self.folder is not None:
            kept = self._read(self.folder / name[:2] / f"{name}.stack", made_of)
            if kept is not None:
                return kept
        held = self._memory.get(name + made_of)
        if held is not None:
            self._memory.move_to_end(name + made_of)
            return held
        loaded = _decode(source, long_side, junction_sigma_px)
        if not self._write(name, made_of, loaded):
            self._hold(name + made_of, loaded)
        return loaded

    def _hold(self, key: str, loaded: LoadedStack) -> None:
        """Keep a sample in memory; least recently used ones leave."""
        self._memory[key] = loaded
        held = sum(each.stack.nbytes for each in self._memory.values())
        while len(self._memory) > 1 and held > self.memory_bytes:
            _, gone = self._memory.popitem(last=False)
            held -= gone.stack.nbytes

    # --- entries ----------------------------------------------------------------------------------

    def _read(self, path: Path, made_of: str) -> LoadedStack | None:
        """The stack of an entry; None where it is absent, made of something else, or damaged."""
        if str(path) in self._damaged:
            return None
        try:
            with open(path, "rb") as file:
                # Copy-on-write: torch asks for writable memory.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            header = _header_of(content)
            if header["made_of"] != made_of:
                return None
            stack = _stack_of(content, header)
            if (str(path), made_of) not in self._trusted:
                if zlib.crc32(memoryview(content)[HEADER_BYTES:]) != header["crc32"]:
                    raise _Damaged("checksum")
                self._trusted.add((str(path), made_of))
                os.utime(path)  # the time of its last use
            return LoadedStack(stack, float(header["tolerance_px"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, _Damaged) as error:
            self._damaged.add(str(path))
            _note(f"{path}: damaged or unreadable entry of the data cache ({error}); made again.")
            return None

    def _write(self, name: str, made_of: str, loaded: LoadedStack) -> bool:
        """Keep a sample on disk. Returns whether it is there now."""
        if self.folder is None or not self._writes:
            return False
        pixels = loaded.stack.numpy().tobytes()
        header = {
            "made_of": made_of,
            "shape": list(loaded.stack.shape),
            "tolerance_px": loaded.tolerance_px,
            "crc32": zlib.crc32(pixels),
        }
        data = json.dumps(header).encode().ljust(HEADER_BYTES) + pixels
        path = self.folder / name[:2] / f"{name}.stack"
        try:
            if not self._make_room(len(data), path):
                return False
            write_bytes_atomically(path, data)
        except OSError as error:
            self._stop(
                f"{self.folder}: decoded samples cannot be kept there ({error}), so they are "
                "decoded again and again, which is slow. Free space, set XDG_CACHE_HOME to "
                "another folder, or data.cache_gb to 0 to be rid of this message."
            )
            return False
        self._trusted.add((str(path), made_of))
        self._damaged.discard(str(path))
        return True

    # --- the bound --------------------------------------------------------------------------------

    def _make_room(self, n_bytes: int, path: Path) -> bool:
        """Whether an entry may be written; removes entries that have not been used for long.

        Other processes write too, so the folder may exceed its bound by what each of them writes
        between two measurements.

        Raises:
            OSError: the folder cannot be made or read.
        """
        assert self.folder is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free - n_bytes < MIN_FREE_BYTES:
            raise OSError(f"only {free / 2**30:.1f} GB free on this disk")
        if self._total is None or self._written >= ENTRIES_PER_SCAN:
            self._total, self._written = sum(size for _, size, _ in self._entries()), 0
        if self._total + n_bytes > self.max_bytes and not self._remove_old(n_bytes):
            self._stop(
                f"{self.folder}: {self._total / 2**30:.1f} GB, the bound of data.cache_gb, are in "
                "use; further samples are decoded again whenever they are needed, which is slow. "
                "Raise data.cache_gb."
            )
            return False
        self._total += n_bytes
        self._written += 1
        return True

    def _remove_old(self, n_bytes: int) -> bool:
        """Remove entries unused since this process began. Returns whether there is room now."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for used, size, path in entries:
            if total + n_bytes <= KEPT_SHARE * self.max_bytes or used >= self._started:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        self._total = total
        return total + n_bytes <= self.max_bytes

    def _entries(self) -> list[tuple[float, int, str]]:
        """Last use, bytes and path of every file in the folder, unfinished ones included."""
        assert self.folder is not None
        found = []
        for below in os.scandir(self.folder):
            for entry in os.scandir(below.path) if below.is_dir() else ():
                try:
                    state = entry.stat()
                except FileNotFoundError:  # another process has removed it
                    continue
                found.append((state.st_mtime, state.st_size, entry.path))
        return found

    def _stop(self, why: str) -> None:
        """Go on without writing; what is on disk is still read."""
        _note(why)
        self._writes = False


def _decode(source: ViewSource, long_side: int, junction_sigma_px: float) -> LoadedStack:
    stack = source.load(long_side, junction_sigma_px)
    return LoadedStack(stack, source.tolerance_px(long_side))


def _header_of(content: mmap.mmap) -> dict[str, Any]:
    header = json.loads(content[:HEADER_BYTES])
    if not isinstance(header, dict):
        raise _Damaged("header")
    return header


def _stack_of(content: mmap.mmap, header: dict[str, Any]) -> torch.Tensor:
    """The memory-mapped stack (6, H, W) uint8 of an entry."""
    shape = header["shape"]
    if not isinstance(shape, list) or len(content) != HEADER_BYTES + int(np.prod(shape)):
        raise _Damaged("length")
    return torch.frombuffer(content, dtype=torch.uint8, offset=HEADER_BYTES).reshape(shape)


def _note(text: str) -> None:
    tqdm.write(f"note: {text}", file=sys.stderr)
