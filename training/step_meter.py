"""What a training step costs: seconds and peak memory."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from training.profiling import peak_memory_mb

PROCESS_STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far. Where the system cannot (CPU on other systems than Linux), the peak of the process stands."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def step_memory_mb(device: torch.device) -> float:
    """Largest memory since :func:`reset_peak_memory`, MB: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda" or not PROCESS_STATUS.exists():
        return peak_memory_mb(device)
    line = next(
        line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 2**10


class StepMeter:
    """Times steps from :meth:`start` to :meth:`stop`; a step that is computed in parts starts with its first.

    Memory is not its business: the engine logs the peak of an epoch, which would be lost if every step forgot the one before.

    Args:
        device: where the steps run.
        world_size: number of processes, over which the engine sums all counts.

    Attributes:
        last: ``seconds_per_step`` of the last step.
    """

    def __init__(self, device: torch.device, world_size: int = 1) -> None:
        self.device, self.world_size = device, world_size
        self.last: dict[str, float] = {}
        self._began: float | None = None

    def start(self) -> dict[str, float]:
        """A step, or a further part of it, begins. Returns what the step before cost, for the log, once per step."""
        if self._began is not None:
            return {}
        self._began = time.perf_counter()
        return {name: value / self.world_size for name, value in self.last.items()}

    def stop(self) -> None:
        """The step has ended, with its optimizer's update."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last = {"seconds_per_step": time.perf_counter() - self._began}
        self._began = None
