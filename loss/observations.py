"""What a step observes of its samples: on the device while it runs, sample by sample afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from loss.agreement import Agreement, MatchCounts
from loss.candidates import Places
from loss.value_map import Observation
from utils.transfer import read_together


class SampleObservation(NamedTuple):
    """What a step observes of one sample.

    Attributes:
        places: update of the value map.
        agreement: of the student's matches with the transform.
    """

    places: Observation
    agreement: Agreement


class BatchObservations(NamedTuple):
    """What a step observes of a batch, on the device.

    Attributes:
        keys, forms: of the samples.
        remembered: (B, P, 2), places of the own frames that the value map knew, pixels.
        places: test results of the candidates.
        matches: counts of the matches.
    """

    keys: Sequence[str]
    forms: Sequence[str]
    remembered: torch.Tensor
    places: Places
    matches: MatchCounts

    def tensors(self) -> list[torch.Tensor]:
        """What :meth:`unpacked` needs, of any shapes."""
        passed, missed = self.places
        return [*passed, self.remembered, missed, torch.stack(self.matches)]

    def unpacked(self, values: Sequence[np.ndarray] | None = None) -> list[SampleObservation]:
        """The observation of each sample, in the order of the batch, on the CPU.

        Args:
            values: of :meth:`tensors`, (B, ...) arrays and the counts (4, B); None reads them now
                and waits for the device.
        """
        points, valid, remembered, missed, counts = (
            read_together(self.tensors()) if values is None else values
        )
        return [
            SampleObservation(
                Observation(
                    key,
                    torch.from_numpy(points[index][valid[index] > 0.5]),
                    torch.from_numpy(remembered[index][missed[index] > 0.5]),
                ),
                _agreement(key, form, *counts[:, index].tolist()),
            )
            for index, (key, form) in enumerate(zip(self.keys, self.forms, strict=True))
        ]


def _agreement(
    key: str, form: str, n_matches: float, n_right: float, n_near: float, n_moving: float
) -> Agreement:
    """The agreement of one sample from its counts."""
    return Agreement(key, form, int(n_matches), int(n_right), n_near / max(n_moving, 1.0))
