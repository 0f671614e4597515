"""What training views are made of: the forms of aligned samples, and their common interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

GENERATED = "generated"  # images rendered in one frame: the transform is exact
LANDMARKS = "landmarks"  # a real pair under the transform through its landmarks
REGISTERED = "registered"  # a real pair under a transform that the network has found
SELF = "self"  # the same real image twice: the transform is exact
REAL_FORMS = (LANDMARKS, REGISTERED, SELF)
FORMS = (GENERATED, *REAL_FORMS)
EXACT_FORMS = (GENERATED, SELF)  # their tolerance is 0


class Provenance(NamedTuple):
    """What the stack of a sample follows from, besides its size and the code.

    Attributes:
        place: which files it is made of, and how; two samples with equal places replace each other
            in the cache.
        content: the state of these files, and numbers that may change during a run.
    """

    place: tuple[str, ...]
    content: tuple[str, ...]


def bytes_of_files(paths: Sequence[Path]) -> int:
    """Size of files together, bytes; a missing one counts 0.

    Args:
        paths: of the files.
    """
    return sum(path.stat().st_size for path in paths if path.is_file())


def state_of_files(paths: list[Path]) -> tuple[str, ...]:
    """Size (bytes) and time of the last change (ns) of each file.

    Raises:
        OSError: a file that is missing or cannot be reached.
    """
    states = [os.stat(path) for path in paths]
    return tuple(f"{state.st_size} {state.st_mtime_ns}" for state in states)


class ViewSource(Protocol):
    """A sample whose two images are aligned, or can be."""

    @property
    def key(self) -> str:
        """Unique within a run and safe as a file name."""

    @property
    def eye(self) -> str:
        """Samples of one eye share it."""

    @property
    def mode(self) -> str:
        """Kind of pair, or root of real images."""

    @property
    def form(self) -> str:
        """One of ``FORMS``."""

    @property
    def has_junctions(self) -> bool:
        """Whether its heatmaps are labels of the detector; else they are 0."""

    def load(self, long_side: int, junction_sigma_px: float) -> torch.Tensor:
        """The stack of rasters in the own frame, see :func:`dataset.samples.load_sample`.

        Args:
            long_side: long side of the result, pixels.
            junction_sigma_px: standard deviation of a junction in the heatmap, pixels of the
                result.

        Returns:
            (6, H, W) uint8 in [0, 255], channels as in :class:`dataset.samples.Channel`.

        Raises:
            InputError: unreadable files; the message names them.
        """

    def provenance(self) -> Provenance:
        """What the stack follows from; equal ones mean equal stacks.

        Raises:
            OSError: a file that is missing or cannot be reached.
        """

    def tolerance_px(self, long_side: int) -> float:
        """Radius within which the alignment is known, pixels of the own frame; 0 = exact.

        Args:
            long_side: long side of the own frame, pixels.

        Raises:
            InputError: an unreadable file.
        """
