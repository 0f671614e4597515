"""Faults that end a run on all processes: unreadable samples, non-finite losses and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from training.batches import Skipped, TolerantViews
from training.processes import gather_objects, on_first_process
from utils.errors import NonFiniteLossError

MAX_NAMED = 6  # non-finite terms or gradients that a message lists
MAX_PROBLEMS = 3  # unreadable samples that a message quotes


@dataclass(frozen=True)
class DataFault:
    """Faults of the data that one process met in a step.

    Attributes:
        fault: why the run must stop; "" if it need not.
        skipped: unreadable samples that another sample replaced.
    """

    fault: str = ""
    skipped: Skipped = field(default_factory=list)


def fetch(batches: Iterator[dict[str, Any]]) -> tuple[dict[str, Any], DataFault]:
    """The next batch of this process, and its faults.

    Args:
        batches: of :func:`training.batches.batches_of_epoch`.
    """
    try:
        batch = next(batches)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        fault = (
            "a data worker was killed by the system, often for lack of memory "
            f"({str(error).splitlines()[0]}); lower --workers or --batch_size"
        )
        return {}, DataFault(fault)
    return batch, DataFault(skipped=batch.pop("skipped"))


def collect_data_faults(
    fabric: Fabric, own: DataFault, known: dict[int, str], views: TolerantViews
) -> str:
    """Exchange the data faults of all processes, and report each unreadable sample once.

    Args:
        fabric: connects the processes; every process must call this function.
        own: faults of this process.
        known: number and message of the unreadable samples so far; extended in place.
        views: the training set, with its limit of unreadable samples.

    Returns:
        Why the run must stop, or "".
    """
    fault = own.fault
    for other in gather_objects(fabric, own):
        fault = fault or other.fault
        for number, problem in other.skipped:
            if number not in known:
                known[number] = problem
                if fabric.is_global_zero:
                    tqdm.write(f"skipped, replaced by another sample: {problem}")
    if len(known) > views.max_bad:
        fault = fault or (
            f"{len(known)} of {len(views)} training samples cannot be read, more than the "
            f"{views.max_bad} that train.max_bad_share {views.max_bad_share:g} allows: "
            f"{' '.join(list(known.values())[:MAX_PROBLEMS])} `python -m dataset.check ROOT` "
            "lists every problem of the data at once"
        )
    return fault


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is not finite, as "gradient of <name>".

    Args:
        model: after the backward pass.
    """
    return [
        f"gradient of {name}"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]


def stop_at_non_finite(
    fabric: Fabric,
    broken: list[str],
    batch: dict[str, Any],
    place: str,
    save: Callable[[list[dict[str, Any]]], Path],
) -> None:
    """Stop all processes; rank 0 writes the state before the step, with the batches in it.

    Args:
        fabric: connects the processes; every process must call this function.
        broken: names of this process's non-finite loss terms or gradients; may be empty.
        batch: of this process.
        place: epoch and step, for the message.
        save: writes the batches of all processes to a checkpoint; returns its path.

    Raises:
        NonFiniteLossError: names the terms, the samples, the place and the checkpoint.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    own = {
        "broken": broken,
        "samples": list(batch["key"]),
        "batch": {name: value.cpu() for name, value in tensors.items()},
    }
    found = gather_objects(fabric, own)
    saved = on_first_process(fabric, lambda: save(found))
    dump = gather_objects(fabric, saved)[0]
    names = list(dict.fromkeys(name for part in found for name in part["broken"]))
    samples = [key for part in found if part["broken"] for key in part["samples"]]
    raise NonFiniteLossError(
        f"{', '.join(names[:MAX_NAMED])}{', ...' if len(names) > MAX_NAMED else ''} not finite at "
        f"{place}; samples: {', '.join(samples)}. Check these samples, lower --lr, or use "
        f"--precision 32. {dump} holds the batch and the state before it; --resume {dump} repeats "
        "the step."
    )
