"""What a training script hands to the engine, and what an epoch gathers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset


class StepOutput(NamedTuple):
    """One training step: named loss terms with ``total`` (means over the batch, with graph), how many samples of the batch
    had something to say to each term, counts for the log (sums over the batch), and anything that the task wants back once
    the step is done on all processes (a list with one entry per sample, or empty)."""

    losses: dict[str, torch.Tensor]
    n_valid: dict[str, int]
    counts: dict[str, float]
    observations: list[Any]


class Stateful(Protocol):
    """Part of a run's state besides the network (a value map)."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class ValidationReport:
    """Result of one validation: ``score`` chooses the best checkpoint (larger is better), ``summary`` goes to the curves,
    ``text`` to the log."""

    score: float
    summary: dict[str, float]
    text: str


@dataclass
class TrainingTask:
    """What a training script trains.

    Attributes:
        model: the network (unwrapped); parameters with ``requires_grad`` are trained.
        dataset: indexed by :class:`dataset.views.ViewKey`; raises ``InputError`` for a sample that cannot be read.
        step: (wrapped network, batch on the device) -> :class:`StepOutput`.
        learn: called after each optimizer step with the observations of all processes, in order.
        validate: (epoch, folder for pictures) -> :class:`ValidationReport`; runs on the first process only.
        description: what a checkpoint needs to rebuild the model (see ``registration.trained_matchers.describe_model``).
        config: everything that defines the run, kept in the checkpoint.
        extra_state: named parts of the state besides the network.
        statistics: figures of those parts, for the log of each epoch.
        resume_hint: what to type to go on with a stopped run.
    """

    model: nn.Module
    dataset: Dataset
    step: Callable[[nn.Module, dict], StepOutput]
    learn: Callable[[list[Any]], None]
    validate: Callable[[int, Path], ValidationReport]
    description: dict[str, Any]
    config: dict[str, Any]
    extra_state: dict[str, Stateful] = field(default_factory=dict)
    statistics: Callable[[], dict[str, float]] = dict
    resume_hint: str = "the same command with --resume"


@dataclass
class EpochProgress:
    """How far an epoch is and what it has gathered; part of every checkpoint, so that a resumed epoch logs the whole of it.

    Attributes:
        steps: done so far.
        sums, shares: of every figure over the steps, and of the share of samples that had something to say to it.
        skipped: number of each sample that could not be read, and what is wrong with it.
        seconds: spent in each part of the loop; "all" is the whole.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, figures: dict[str, float], shares: dict[str, float]) -> None:
        """Add a step's figures; a share that is not given is 1."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.shares[name] = self.shares.get(name, 0.0) + shares.get(name, 1.0)

    def means(self) -> dict[str, float]:
        """Mean of every term over the samples that had something to say to it, mean of every count over the steps. A term
        that no sample contributed to is zero."""
        return {name: value / max(self.shares[name], 1e-9) for name, value in self.sums.items()}
