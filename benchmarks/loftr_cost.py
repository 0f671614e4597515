"""Time and memory of a LoFTR training step with and without frozen modules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks.documents import markdown_table
from benchmarks.processes import in_new_process
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from training.loftr_config import LoFTRConfig
from training.loftr_step import LoFTRStep
from training.run import describe_parameters
from training.step_meter import reset_peak_memory, step_memory_mb

WARM_UP_STEPS = 2  # the first steps allocate memory that later steps reuse; their time is left out


class StepCost(NamedTuple):
    """Cost of a training step.

    Attributes:
        parameters: trained and total parameters, as text.
        seconds: median over the steps after the warm-up.
        memory_mb: peak resident memory of the process, MB.
    """

    parameters: str
    seconds: float
    memory_mb: float


def measure_cost(
    config: LoFTRConfig, freeze: tuple[str, ...], data: str, mode: str, steps: int
) -> StepCost:
    """Measure a training step on the CPU in this process, on one batch of generated views.

    Args:
        config: of the network, the views and the stage v3.
        freeze: modules to freeze.
        data: folder of generated data.
        mode: kind of pairs.
        steps: number of steps, more than ``WARM_UP_STEPS``.
    """
    torch.manual_seed(0)
    model = config.build_model()
    model.freeze(freeze)
    model.train()
    batch_size = config.v3.train.batch_size
    views = AlignedPairs(discover_samples(data, [mode])[0][:batch_size], config.view)
    batch = default_collate([views[ViewKey(1, index)] for index in range(batch_size)])
    step = LoFTRStep(model, config.v3.loss, torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    seconds, memory = [], []
    for _ in range(steps):
        reset_peak_memory(step.meter.device)
        output = step(model, batch)
        optimizer.zero_grad(set_to_none=True)
        output.losses["total"].backward()
        optimizer.step()
        step.end([])
        del output
        seconds.append(step.meter.last["seconds_per_step"])
        memory.append(step_memory_mb(step.meter.device))
    return StepCost(
        describe_parameters(model), float(np.median(seconds[WARM_UP_STEPS:])), float(max(memory))
    )


def compare_costs(config: LoFTRConfig, data: str, mode: str, steps: int, repeats: int) -> str:
    """Markdown table of a step with and without frozen modules, and a sentence that compares them.

    The variants alternate, each measurement in a new process; the least time and the least memory
    of the repeats count, because other load of the machine only adds to both.

    Args:
        config: settings of the run; its stage v3 names the frozen modules.
        data: folder of generated data.
        mode: kind of pairs.
        steps: steps of one measurement.
        repeats: measurements of each variant.
    """
    variants: dict[str, tuple[str, ...]] = {"frozen": config.v3.freeze, "unfrozen": ()}
    costs: dict[str, list[StepCost]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, freeze in variants.items():
            costs[name].append(in_new_process(measure_cost, config, freeze, data, mode, steps))
    seconds = {name: min(cost.seconds for cost in found) for name, found in costs.items()}
    memory = {name: min(cost.memory_mb for cost in found) for name, found in costs.items()}
    rows = {
        name: {
            "parameters": found[0].parameters,
            "seconds per step": f"{seconds[name]:.2f}",
            "peak memory, MB": f"{memory[name]:.0f}",
        }
        for name, found in costs.items()
    }
    return (
        f"{markdown_table('', rows)}\n\n"
        f"A frozen step is {seconds['unfrozen'] / seconds['frozen']:.2f} times as fast "
        f"and needs {memory['unfrozen'] - memory['frozen']:.0f} MB less."
    )
