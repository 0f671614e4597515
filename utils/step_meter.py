"""What a training step costs: seconds and peak memory."""
from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

PROCESS_STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far. Where the system cannot (CPU on other systems than Linux), the peak of the process stands."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory since :func:`reset_peak_memory`, in MB: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if PROCESS_STATUS.exists():
        line = next(line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    # Kilobytes everywhere but on macOS, which counts bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class StepMeter:
    """Measures steps from :meth:`start` to :meth:`stop`; ``last`` holds the figures of the last one, for the log."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last: dict[str, float] = {}
        self._began = 0.0

    def start(self) -> None:
        """A step begins."""
        reset_peak_memory(self.device)
        self._began = time.perf_counter()

    def stop(self) -> None:
        """The step has ended, with its optimizer's update."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last = {"seconds_per_step": time.perf_counter() - self._began, "peak_memory_mb": peak_memory_mb(self.device)}
