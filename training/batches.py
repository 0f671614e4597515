"""Which views a step sees: their keys, their order, and what stands in for one that cannot be read.

Every draw follows from (seed, epoch, index), so there is no state of a sampler or a worker to be saved: a run that goes on
in the middle of an epoch asks for the remaining keys and gets what it would have got.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from dataset.views import ViewKey
from training.settings import TrainSettings
from utils.errors import InputError


class ViewBatches(Sampler[list[ViewKey]]):
    """Batches of view keys for one epoch; each process takes its share of every batch.

    The order depends on (seed, epoch) alone. Process r of n takes items r, r + n, ... of each batch, so n processes
    together see exactly the batches that one would see.

    Attributes:
        epoch: whose order comes next.
        first_step: so many batches are left out, because the run that is resumed has done them.
    """

    def __init__(
        self, n_samples: int, settings: TrainSettings, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if settings.batch_size % (world_size * settings.accumulate):
            raise InputError(
                f"--batch_size {settings.batch_size} cannot be shared evenly by {world_size} processes, each in "
                f"{settings.accumulate} parts."
            )
        self.n_views = n_samples * settings.views_per_sample
        self.batch_size, self.seed, self.rank, self.world_size = (
            settings.batch_size,
            seed,
            rank,
            world_size,
        )
        self.epoch, self.first_step = 1, 0

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return max(1, self.n_views // self.batch_size)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_views)
        # A small data set fills its one batch by starting over.
        order = np.resize(order, len(self) * self.batch_size)
        for start in range(self.first_step * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size][self.rank :: self.world_size]
            yield [ViewKey(self.epoch, int(index)) for index in batch]


class TolerantViews(Dataset):
    """A data set in which the next readable sample stands in for one that cannot be read.

    The stand-in follows from the key, so a resumed run takes the same one. An item is the view, or None when more samples in a
    row are unreadable than a run puts up with, and the samples that were skipped as (number, what is wrong).

    Args:
        dataset: indexed by :class:`ViewKey`; raises ``InputError`` for a sample that cannot be read.
        max_bad_share: share of the samples that may be unreadable.
    """

    def __init__(self, dataset: Dataset, max_bad_share: float) -> None:
        self.dataset = dataset
        self.max_bad = min(math.ceil(max_bad_share * len(dataset)), len(dataset) - 1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: ViewKey) -> tuple[dict | None, list[tuple[int, str]]]:
        skipped: list[tuple[int, str]] = []
        for offset in range(self.max_bad + 1):
            try:
                return self.dataset[ViewKey(key.epoch, key.index + offset)], skipped
            except InputError as error:
                skipped.append(((key.index + offset) % len(self.dataset), str(error)))
        return None, skipped


def collate_views(items: list[tuple[dict | None, list[tuple[int, str]]]]) -> dict[str, Any]:
    """A batch of :class:`TolerantViews`: the collated views (none when one is missing) and ``skipped`` of all items."""
    views = [view for view, _ in items]
    skipped = [entry for _, entries in items for entry in entries]
    return (default_collate(views) if all(view is not None for view in views) else {}) | {
        "skipped": skipped
    }


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A collated batch in ``parts`` equal batches of consecutive items."""
    size = len(batch["key"]) // parts
    return [
        {name: values[start : start + size] for name, values in batch.items()}
        for start in range(0, parts * size, size)
    ]


def start_worker(_: int) -> None:
    """Set up a data worker: Ctrl-C is the main process's to handle.

    Not here: ``cv2.setNumThreads``, which waits for ever in a fork for threads that only the main process has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed every global generator by the place in the run: what a model or a library draws repeats on a resumed run."""
    value = int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])
    # Not torch.manual_seed: for every kind of device that is absent it notes down the stack, which takes milliseconds.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002  (for libraries; the project itself draws from generators of its own)
