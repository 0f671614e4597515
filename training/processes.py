"""Several processes: Fabric for those that ``torchrun`` started, and their exchange of data.

Processes wait for each other at every exchange, so a fault of one process must stop all of them:
faults are exchanged, and raised on every process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from utils.device import pick_device
from utils.errors import InputError, RunStoppedError

# Names of the --precision argument and of Fabric.
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
# The other processes wait for the slowest share of a validation. A process that dies closes its
# connections, which the others notice without this timeout.
LONGEST_WAIT = timedelta(hours=12)
T = TypeVar("T")


def make_fabric(device: str = "auto", precision: str = "32") -> Fabric:
    """Fabric for one process, or for the processes that ``torchrun`` started.

    Args:
        device: "auto" (CUDA if available, else the CPU), "cpu" or "cuda".
        precision: a key of ``PRECISIONS``.

    Raises:
        InputError: a device that this machine lacks, or fp16 on a CPU.
    """
    accelerator = pick_device(device).type
    if precision == "fp16" and accelerator == "cpu":
        raise InputError("--precision fp16 needs a GPU; use bf16 or 32 on a CPU.")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy=DDPStrategy(timeout=LONGEST_WAIT) if world > 1 else "auto",
        precision=PRECISIONS[precision],
    )
    fabric.launch()
    return fabric


def gather_objects(fabric: Fabric, item: T) -> list[T]:
    """The items of all processes, by rank, on every process.

    Args:
        fabric: connects the processes.
        item: of this process; must be picklable.
    """
    if fabric.world_size == 1:
        return [item]
    gathered: list[T] = [item] * fabric.world_size
    torch.distributed.all_gather_object(gathered, item)
    return gathered


def gather_in_batch_order(fabric: Fabric, items: list[T]) -> list[T]:
    """Items of the samples of all processes, in the order of the whole batch, on every process.

    Args:
        fabric: connects the processes.
        items: one per sample of this process, equally many on every process; picklable.
    """
    return [item for group in zip(*gather_objects(fabric, items), strict=True) for item in group]


def sum_over_processes(fabric: Fabric, values: list[float]) -> list[float]:
    """Sum each value over all processes; a NaN or an infinity of one process reaches all.

    Args:
        fabric: connects the processes.
        values: equally many on every process.
    """
    if fabric.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    reduced = fabric.all_reduce(total, reduce_op="sum")
    assert isinstance(reduced, torch.Tensor)
    return reduced.tolist()


def on_first_process(fabric: Fabric, action: Callable[[], T]) -> T | None:
    """Call a function on rank 0 only; an exception there stops the other processes too.

    Args:
        fabric: connects the processes; every process must call this function.
        action: takes no arguments.

    Returns:
        Its result on rank 0, None on the other processes.

    Raises:
        RunStoppedError: on the other processes, if rank 0 raised an exception.
    """
    return _together(fabric, action if fabric.is_global_zero else None)


def on_every_process(fabric: Fabric, action: Callable[[], T]) -> list[T]:
    """Call a function on every process; an exception on one of them stops the others too.

    Args:
        fabric: connects the processes; every process must call this function.
        action: takes no arguments; its result must be picklable.

    Returns:
        The results of all processes, by rank, on every process.

    Raises:
        RunStoppedError: on the processes without an exception, if another one raised one.
    """
    result = _together(fabric, action)
    return gather_objects(fabric, cast(T, result))


def _together(fabric: Fabric, action: Callable[[], T] | None) -> T | None:
    """Call this process's function, if it has one, and exchange the exceptions."""
    if fabric.world_size == 1:
        return action() if action else None
    result: T | None = None
    failure: BaseException | None = None
    try:
        result = action() if action else None
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    own = None if failure is None else f"{type(failure).__name__}: {failure}"
    reasons = gather_objects(fabric, own)
    if failure is not None:
        raise failure
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise RunStoppedError(f"process {rank} stopped: {reason}")
    return result
