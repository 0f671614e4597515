"""Where the time and the memory of a run go."""

from __future__ import annotations

import sys

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from tqdm import tqdm


def describe_seconds(seconds: dict[str, float], steps: int) -> str:
    """A table of the parts of an epoch: share, seconds, milliseconds a step.

    Args:
        seconds: by part; "all" is the whole.
    """
    whole = max(seconds["all"], 1e-9)
    parts = {name: value for name, value in seconds.items() if name != "all"}
    parts["everything else"] = max(0.0, whole - sum(parts.values()))
    lines = [f"{steps} steps in {whole:.1f} s, of which"]
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        lines.append(
            f"  {100 * value / whole:5.1f} %  {value:8.2f} s  {1000 * value / max(steps, 1):8.1f} ms a step  {name}"
        )
    return "\n".join(lines)


def operator_profiler() -> profile:
    """A profiler of three steps, after two that warm up; prints the operators that take longest. Call ``step()`` each step."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"

    def show(done: profile) -> None:
        tqdm.write(
            "operators of three steps\n"
            + done.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40)
        )

    return profile(
        activities=activities,
        schedule=schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=show,
    )


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that this process has used so far, MB: of the GPU when it trains there, else of the machine.

    NaN on Windows, which keeps no such figure.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
