"""Transfers between the host and the device that wait as little as possible.

A GPU works through a queue. Reading a value on the host waits until the queue is empty, and then
the GPU waits for the host. So what a step yields is collected and read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Queue the copy of an array of any shape to a device; does not wait for the device.

    Args:
        array: on the host; of a type that torch has.
        device: of the result.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


def read_together(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Values of tensors of any shapes, read in a single transfer; the only wait of a step.

    Args:
        tensors: of one device; integers up to 2^24 and booleans are exact.

    Returns:
        Their values as float32 arrays of the same shapes.
    """
    if not tensors:
        return []
    flat = torch.cat([each.reshape(-1) for each in tensors]).detach().float().cpu().numpy()
    ends = np.cumsum([each.numel() for each in tensors])
    return [
        part.reshape(each.shape)
        for part, each in zip(np.split(flat, ends[:-1]), tensors, strict=True)
    ]
