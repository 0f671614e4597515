"""Time and memory of a run."""

from __future__ import annotations

import sys

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from tqdm import tqdm

MB = 2**20


def describe_seconds(seconds: dict[str, float], steps: int) -> str:
    """A table of the parts of an epoch: share, seconds, milliseconds per step.

    Args:
        seconds: by part; "all" is the whole.
        steps: number of steps.
    """
    whole = max(seconds["all"], 1e-9)
    parts = {name: value for name, value in seconds.items() if name != "all"}
    parts["everything else"] = max(0.0, whole - sum(parts.values()))
    lines = [f"{steps} steps in {whole:.1f} s, of which"]
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        per_step_ms = 1000 * value / max(steps, 1)
        lines.append(
            f"  {100 * value / whole:5.1f} %  {value:8.2f} s  {per_step_ms:8.1f} ms a step  {name}"
        )
    return "\n".join(lines)


def operator_profiler() -> profile:
    """A profiler of three steps after two warm-up steps; prints the slowest operators.

    Call its ``step()`` after each step.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"

    def show(done: profile) -> None:
        table = done.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40)
        tqdm.write(f"operators of three steps\n{table}")

    return profile(
        activities=activities,
        schedule=schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=show,
    )


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory of this process so far, MB: allocated on the GPU if ``device`` is one, else
    resident.

    Args:
        device: of the training.

    Returns:
        NaN on Windows, which does not record it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    if sys.platform == "win32":
        return float("nan")
    import resource

    # Bytes on macOS, kilobytes on Linux.
    unit = MB if sys.platform == "darwin" else MB / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
