"""Several processes: Fabric for those that ``torchrun`` started, and the few ways in which they talk.

Processes wait for each other at every exchange, so whatever stops one of them has to stop all: faults are exchanged, and
raised everywhere together.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from utils.device import pick_device
from utils.errors import InputError, RunStoppedError

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# While the first process validates the others wait; a process that dies breaks the connection at once.
LONGEST_WAIT = timedelta(hours=12)
T = TypeVar("T")


def make_fabric(device: str = "auto", precision: str = "32") -> Fabric:
    """Fabric for one process, or for the processes that ``torchrun`` started.

    Args:
        device: "auto" (CUDA where there is one, else the CPU), "cpu" or "cuda". precision: "32", "bf16" or "fp16".

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
    """The items of all processes, in their order, on every process."""
    if fabric.world_size == 1:
        return [item]
    gathered: list[T] = [item] * fabric.world_size
    torch.distributed.all_gather_object(gathered, item)
    return gathered


def sum_over_processes(fabric: Fabric, values: list[float]) -> list[float]:
    """Sum each of the values over all processes; a NaN or an infinity of one reaches all."""
    if fabric.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    return fabric.all_reduce(total, reduce_op="sum").tolist()


def on_first_process(fabric: Fabric, action: Callable[[], T]) -> T | None:
    """Do something on the first process alone; what it raises ends the others too.

    Returns:
        Its result on the first process, None on the others.
    """
    if fabric.world_size == 1:
        return action()
    result, failure = None, None
    if fabric.is_global_zero:
        try:
            result = action()
        except (Exception, KeyboardInterrupt) as error:
            failure = error
    reason = gather_objects(
        fabric, None if failure is None else f"{type(failure).__name__}: {failure}"
    )[0]
    if failure is not None:
        raise failure
    if reason is not None:
        raise RunStoppedError(f"the first process stopped: {reason}")
    return result
