"""The interface between a training script and the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from dataset.views import ViewKey
from training.mixture import Mixture
from training.step_output import StepOutput


class ViewDataset(Protocol):
    """Views by key; equal keys give equal views."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, key: ViewKey) -> dict[str, Any]:
        """A view of sample ``key.index % len(self)``; an ``InputError`` if it cannot be read."""


class Stateful(Protocol):
    """Part of the state of a run besides the network, such as a value map."""

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class ValidationReport:
    """Result of one validation.

    Attributes:
        score: selects the best checkpoint; larger is better.
        summary: figures for the curves, by name.
        text: for ``validation_log.txt``.
    """

    score: float
    summary: dict[str, float]
    text: str


class Validation(Protocol):
    """How a task is validated: every process scores its share, rank 0 writes the report."""

    def score(self, epoch: int, folder: Path, rank: int, world_size: int) -> list[Any]:
        """Picklable scores of this process's share; writes pictures to the folder."""

    def report(self, scores: list[Any]) -> ValidationReport:
        """Summary of the scores of all processes, in any order."""


class Teaching(Protocol):
    """Samples whose set changes between epochs, such as real pairs that the network registers.

    All processes call both methods with equal arguments and get equal results.
    """

    def begin_epoch(self, epoch: int) -> Mixture:
        """Choose the samples of an epoch; called again when a run is resumed within the epoch."""

    def end_epoch(self, epoch: int, report: ValidationReport | None) -> str:
        """Judge the samples. Returns why the training should stop; "" otherwise."""


@dataclass
class TrainingTask:
    """What a training script trains.

    Attributes:
        model: the unwrapped network; parameters with ``requires_grad`` are trained.
        dataset: views to train on.
        step: (wrapped network, batch on the device) -> :class:`training.step_output.StepOutput`.
        learn: called after each optimizer step with the observations of all processes, in order.
        validation: scores the network.
        validate_every: number of epochs from one validation to the next; the first and the last
            epoch are always validated.
        description: what a checkpoint needs to rebuild the model, see
            ``registration.trained_matchers.describe_model``.
        config: everything that defines the run; a checkpoint holds it as ``config``.
        mixture: how often the samples of each group are shown; None shows all equally often.
        teaching: chooses the samples of each epoch; None shows those of the mixture.
        extra_state: named parts of the state besides the network.
        statistics: figures of those parts, for the log of each epoch.
        resume_hint: command that continues a stopped run.
    """

    model: nn.Module
    dataset: ViewDataset
    step: Callable[[nn.Module, dict[str, Any]], StepOutput]
    learn: Callable[[list[Any]], None]
    validation: Validation
    description: dict[str, Any]
    config: dict[str, Any]
    validate_every: int = 1
    mixture: Mixture | None = None
    teaching: Teaching | None = None
    extra_state: dict[str, Stateful] = field(default_factory=dict)
    statistics: Callable[[], dict[str, float]] = dict
    resume_hint: str = "the same command with --resume"
