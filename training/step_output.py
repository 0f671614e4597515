"""What a step of a training script yields, and how the engine reads it: in one transfer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from utils.transfer import read_together


class Observations(Protocol):
    """What a step observes of its samples, on the device until the step is over."""

    def tensors(self) -> list[torch.Tensor]:
        """What has to be read, of any shapes."""

    def unpacked(self, values: Sequence[np.ndarray] | None = None) -> list[Any]:
        """One entry per sample, from the values of :meth:`tensors`, arrays of the same shapes."""


class StepOutput(NamedTuple):
    """Result of one forward pass and its losses, on the device.

    Attributes:
        losses: loss terms and ``total``, means over the batch, with graph.
        n_valid: number of samples of the batch that contributed to each term; a term that is not
            named counts all samples.
        counts: further figures for the log, sums over the batch.
        observations: for :attr:`training.task.TrainingTask.learn`; None where a step observes
            nothing.
    """

    losses: Mapping[str, torch.Tensor]
    n_valid: Mapping[str, torch.Tensor | int]
    counts: Mapping[str, torch.Tensor | float]
    observations: Observations | None = None

    def without_graph(self) -> StepOutput:
        """The same with detached losses."""
        losses = {name: value.detach() for name, value in self.losses.items()}
        return self._replace(losses=losses)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that has to be read, of any shapes."""
        values = [
            value for part in (self.losses, self.n_valid, self.counts) for value in part.values()
        ]
        observed = [] if self.observations is None else self.observations.tensors()
        return [value for value in values if isinstance(value, torch.Tensor)] + observed


class HostOutput(NamedTuple):
    """A :class:`StepOutput` as numbers on the host; ``observations`` has one entry per sample."""

    losses: dict[str, float]
    n_valid: dict[str, float]
    counts: dict[str, float]
    observations: list[Any]


def read_outputs(
    outputs: Sequence[StepOutput], *further: torch.Tensor
) -> tuple[list[HostOutput], list[float]]:
    """Read the outputs of all parts of a batch in one transfer.

    Args:
        outputs: of the parts.
        further: scalars to be read with them.

    Returns:
        The outputs, and the values of the scalars.
    """
    tensors = [tensor for output in outputs for tensor in output.tensors()]
    values = iter(read_together([*tensors, *further]))
    return [_host_output(output, values) for output in outputs], list(map(float, values))


def _host_output(output: StepOutput, values: Iterator[np.ndarray]) -> HostOutput:
    """One output from the values of its tensors, which it takes from the iterator."""
    losses, n_valid, counts = (
        {
            name: float(next(values) if isinstance(value, torch.Tensor) else value)
            for name, value in part.items()
        }
        for part in (output.losses, output.n_valid, output.counts)
    )
    observed = output.observations
    if observed is None:
        return HostOutput(losses, n_valid, counts, [])
    own = [next(values) for _ in observed.tensors()]
    return HostOutput(losses, n_valid, counts, observed.unpacked(own))
