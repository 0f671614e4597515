"""What training views are made of: the forms of aligned samples, and their common interface."""

from __future__ import annotations

from typing import Protocol

import torch

GENERATED = "generated"  # images rendered in one frame: the transform is exact
LANDMARKS = "landmarks"  # a real pair under the transform through its landmarks
REGISTERED = "registered"  # a real pair under a transform that the network has found
SELF = "self"  # the same real image twice: the transform is exact
REAL_FORMS = (LANDMARKS, REGISTERED, SELF)
FORMS = (GENERATED, *REAL_FORMS)
EXACT_FORMS = (GENERATED, SELF)  # their tolerance is 0


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

    def tolerance_px(self, long_side: int) -> float:
        """Radius within which the alignment is known, pixels of the own frame; 0 = exact.

        Args:
            long_side: long side of the own frame, pixels.

        Raises:
            InputError: an unreadable file.
        """
