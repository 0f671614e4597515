"""Order of the training views, and the replacement of unreadable ones.

Every random draw follows from (seed, epoch, index), so neither a sampler nor a worker has state to
save: a run that is resumed in the middle of an epoch requests the remaining keys and gets the same
views as an uninterrupted run.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dataset.device_views import PACKED, collate_packed, make_views
from dataset.views import ViewKey
from training.loop_settings import TrainSettings
from training.mixture import Mixture
from training.task import ViewDataset
from utils.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MMAP_BYTES = 1 << 25  # the largest value that glibc takes; larger arrays get pages of their own
KEPT_BYTES = 1 << 28  # freed memory that a worker keeps; a batch of 16 views of 512 px has 150 MB
MAX_WORKERS = 16  # chosen by hand: each prefetches two batches, and needs memory for them
BINARY_RASTERS = ("_mask", "_fov")  # ends of the names of rasters that are 0 or 1
Skipped = list[tuple[int, str]]  # number of a sample and its error message


class ViewBatches(Sampler[list[ViewKey]]):
    """Batches of view keys for one epoch; each process gets its share of every batch.

    The order depends on (seed, epoch) alone. Rank r of n takes items r, r + n, ... of each batch,
    so n processes together see exactly the batches that one process would see.

    Args:
        n_samples: of the data set.
        settings: batch size, parts of a batch, views per sample.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        mixture: how often each group of samples is shown; None shows every sample equally often.

    Attributes:
        epoch: the epoch whose order comes next, from 1.
        first_step: number of batches to leave out, because a resumed run has done them.

    Raises:
        InputError: a batch that the processes and parts cannot share evenly.
    """

    def __init__(
        self,
        n_samples: int,
        settings: TrainSettings,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        if settings.batch_size % (world_size * settings.accumulate):
            raise InputError(
                f"--batch_size {settings.batch_size} cannot be shared evenly by {world_size} "
                f"processes, each in {settings.accumulate} parts."
            )
        self.n_views = n_samples * settings.views_per_sample
        self.mixture = mixture or Mixture.even(n_samples)
        self.batch_size = settings.batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 1
        self.first_step = 0

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return max(1, self.n_views // self.batch_size)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.mixture.order_of_epoch(self.n_views, self.batch_size, rng)
        # A data set smaller than one batch is repeated to fill it.
        order = np.resize(order, len(self) * self.batch_size)
        for start in range(self.first_step * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size][self.rank :: self.world_size]
            yield [ViewKey(self.epoch, int(index)) for index in batch]


class TolerantViews(Dataset):
    """A data set that replaces an unreadable sample by the next readable one.

    The replacement follows from the key, so a resumed run uses the same one. An item is the view
    (None if more consecutive samples are unreadable than allowed) and the samples that were
    skipped.

    Args:
        dataset: raises ``InputError`` for a sample that cannot be read.
        max_bad_share: share of the samples (rounded up) that may be unreadable.

    Attributes:
        max_bad_share: as given.
        max_bad: number of samples that may be unreadable.
    """

    def __init__(self, dataset: ViewDataset, max_bad_share: float) -> None:
        self.dataset = dataset
        self.max_bad_share = max_bad_share
        self.max_bad = min(math.ceil(max_bad_share * len(dataset)), len(dataset) - 1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: ViewKey) -> tuple[dict[str, Any] | None, Skipped]:
        skipped: Skipped = []
        for offset in range(self.max_bad + 1):
            try:
                return self.dataset[ViewKey(key.epoch, key.index + offset)], skipped
            except InputError as error:
                skipped.append(((key.index + offset) % len(self.dataset), str(error)))
        return None, skipped


def count_workers(asked: int | None, fabric: Fabric) -> int:
    """Number of data loading processes of this process.

    Args:
        asked: ``train.workers``; None takes all cores that this process may use but one, shared by
            the training processes of this machine: at least 1, at most ``MAX_WORKERS``.
        fabric: knows the number of processes.
    """
    if asked is not None:
        return asked
    # macOS and Windows have no affinity.
    usable = getattr(os, "sched_getaffinity", None)
    n_cores = len(usable(0)) if usable else os.cpu_count() or 1
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", fabric.world_size))
    return max(1, min(MAX_WORKERS, n_cores // n_processes - 1))


def make_loader(
    views: TolerantViews,
    batches: ViewBatches,
    workers: int,
    fabric: Fabric,
    changing: bool = False,
) -> DataLoader:
    """A loader of batches on the device of the process.

    Args:
        views: the data set.
        batches: keys of each batch.
        workers: data loading processes; 0 loads in the main process.
        fabric: moves the batches to the device.
        changing: whether samples change between epochs; then every epoch starts new processes,
            because each has its own copy of the data set.
    """
    loader = DataLoader(
        views,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_views,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0 and not changing,
        pin_memory=fabric.device.type == "cuda",
    )
    wrapped = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    assert not isinstance(wrapped, list), "one loader in, one loader out"
    return wrapped


def batches_of_epoch(loader: DataLoader, overfit: bool = False) -> Iterator[dict[str, Any]]:
    """The batches of an epoch; views that come packed are made here, on their device.

    Args:
        loader: from :func:`make_loader`.
        overfit: repeat the first batch without end.
    """
    if not overfit:
        yield from map(finish_batch, loader)
        return
    first = finish_batch(next(iter(loader)))
    while True:
        yield dict(first)


def collate_views(items: list[tuple[dict[str, Any] | None, Skipped]]) -> dict[str, Any]:
    """A batch from items of :class:`TolerantViews`.

    Args:
        items: views and skipped samples.

    Returns:
        The collated views, or none of them if one is missing, and ``skipped`` of all items.
    """
    views = [view for view, _ in items]
    skipped = [entry for _, entries in items for entry in entries]
    if any(view is None for view in views):
        return {"skipped": skipped}
    packed = [view.pop(PACKED) for view in views if view is not None and PACKED in view]
    batch = default_collate([_with_bytes(view) for view in views if view is not None])
    if packed:
        batch[PACKED] = collate_packed(packed)
    return batch | {"skipped": skipped}


def _with_bytes(view: dict[str, Any]) -> dict[str, Any]:
    """A view whose masks and fields of view, 0 or 1, are bytes on the way from the worker.

    Memory that is shared between processes costs more time than warping: each batch has new pages.
    """
    return view | {
        name: value.byte() for name, value in view.items() if name.endswith(BINARY_RASTERS)
    }


def finish_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch from :func:`collate_views`, on its device, with all views as float rasters.

    Args:
        batch: is not changed.
    """
    floats = {name: value.float() for name, value in batch.items() if name.endswith(BINARY_RASTERS)}
    return make_views(batch | floats)


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A collated batch in ``parts`` equal batches of consecutive items.

    Args:
        batch: tensors and lists of equal length, ``key`` among them.
        parts: divides that length.
    """
    size = len(batch["key"]) // parts
    return [
        {name: values[start : start + size] for name, values in batch.items()}
        for start in range(0, parts * size, size)
    ]


def start_worker(_: int) -> None:
    """Set up a data worker: it ignores Ctrl-C, which the main process handles.

    Freed memory stays with the process: else every view gets new pages from the system, which takes
    a tenth of its time. Other C libraries than that of GNU do not know this setting.

    ``cv2.setNumThreads`` must not be called here: in a forked process it waits without end for
    threads that only the main process has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MMAP_BYTES)
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed every global random generator by the position in the run.

    Random numbers that a model or a library draws in a step are then the same in a resumed run.

    Args:
        seed: of the run.
        epoch: from 1.
        step: from 0, within the epoch.
        rank: of this process.
    """
    value = int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])
    # torch.manual_seed would record the call stack for every absent kind of device, which takes
    # milliseconds.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002  (used by libraries only)
