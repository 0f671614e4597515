"""How far a run is: the figures of the epoch under way, and the time of each part of the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

# Figures of the machine, not of the training: they differ between equal runs.
MEASURED = ("waiting_share", "pairs_per_second", "peak_memory_mb")
MIN_SHARE = 1e-9  # keeps the mean of a term finite where no sample contributed to it


@dataclass
class EpochProgress:
    """Sums over the finished steps of an epoch; part of every checkpoint.

    A run that is resumed in the middle of an epoch logs the figures of the whole epoch.

    Attributes:
        steps: number of finished steps.
        sums: sum of each figure over the steps.
        shares: sum over the steps of the share of samples that contributed to each figure.
        skipped: number of each unreadable sample, with its error message.
        seconds: time spent in each part of the loop; "all" is the whole loop.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, step: StepFigures) -> None:
        """Add the figures of a finished step.

        Args:
            step: figures and shares; a figure without a share counts with share 1.
        """
        for name, value in step.values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.shares[name] = self.shares.get(name, 0.0) + step.shares.get(name, 1.0)
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Mean of each loss term over the samples that contributed to it, of each count over steps.

        A term that no sample contributed to is 0.
        """
        return {
            name: value / max(self.shares[name], MIN_SHARE) for name, value in self.sums.items()
        }

    def rates(self, batch_size: int) -> dict[str, float]:
        """Share of the time spent waiting for data, and pairs per second.

        Args:
            batch_size: pairs per step, over all processes.
        """
        return {
            "waiting_share": self.seconds["waiting for data"] / self.seconds["all"],
            "pairs_per_second": self.steps * batch_size / self.seconds["all"],
        }


@dataclass
class StepFigures:
    """Figures of one step over all processes and all parts of the batch.

    Attributes:
        values: loss terms (means over the batch) and counts (sums over the batch).
        shares: share in [0, 1] of the samples that contributed to each loss term.
    """

    values: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, share: float | None = None) -> None:
        """Add to a figure.

        Args:
            name: of the figure.
            value: added to it.
            share: added to its share; None leaves the share alone.
        """
        self.values[name] = self.values.get(name, 0.0) + value
        if share is not None:
            self.shares[name] = self.shares.get(name, 0.0) + share


def progress_bar(epoch: int, n_steps: int, n_done: int, visible: bool) -> tqdm:
    """The bar of an epoch on the terminal.

    Args:
        epoch: number of the epoch.
        n_steps: of the epoch.
        n_done: steps that a stopped run has done.
        visible: whether this process shows it.
    """
    return tqdm(
        total=n_steps,
        initial=n_done,
        desc=f"epoch {epoch}",
        unit="step",
        dynamic_ncols=True,
        mininterval=1.0,
        disable=not visible,
    )


@contextmanager
def timed(
    seconds: dict[str, float], part: str, synchronised: torch.device | None = None
) -> Iterator[None]:
    """Add the time of the block to ``seconds[part]``.

    Args:
        seconds: time of each part so far.
        part: name of the block.
        synchronised: a CUDA device whose queued work counts to this block; None does not wait.
    """
    start = time.perf_counter()
    yield
    if synchronised is not None and synchronised.type == "cuda":
        torch.cuda.synchronize(synchronised)
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
