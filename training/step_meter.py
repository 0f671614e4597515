"""Cost of a training step: seconds and peak memory."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from training.profiling import peak_memory_mb

PROCESS_STATUS = Path("/proc/self/status")  # Linux: VmHWM, the peak resident memory
CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: writing 5 resets VmHWM


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of the memory; without effect for a CPU on other systems than Linux.

    Args:
        device: of the training.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def step_memory_mb(device: torch.device) -> float:
    """Largest memory since :func:`reset_peak_memory`, MB: allocated on a GPU, resident on a CPU.

    Args:
        device: of the training.
    """
    if device.type == "cuda" or not PROCESS_STATUS.exists():
        return peak_memory_mb(device)
    lines = PROCESS_STATUS.read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10


class StepMeter:
    """Measures the time of steps, from :meth:`start` to :meth:`stop`.

    It does not reset the peak memory, because the engine logs the peak of a whole epoch.

    Args:
        device: on which the steps run.
        world_size: number of processes; the engine sums all counts over them.

    Attributes:
        last: ``seconds_per_step`` of the last step; empty before it.
    """

    def __init__(self, device: torch.device, world_size: int = 1) -> None:
        self.device = device
        self.world_size = world_size
        self.last: dict[str, float] = {}
        self._began: float | None = None

    def start(self) -> dict[str, float]:
        """Begin a step, or a further part of one that has begun.

        Returns:
            Cost of the previous step for the log, divided by the number of processes; empty for a
            further part.
        """
        if self._began is not None:
            return {}
        self._began = time.perf_counter()
        return {name: value / self.world_size for name, value in self.last.items()}

    def stop(self) -> None:
        """End a step, after the update of the optimizer.

        Raises:
            RuntimeError: no step has begun.
        """
        if self._began is None:
            raise RuntimeError("stop() without start()")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last = {"seconds_per_step": time.perf_counter() - self._began}
        self._began = None
