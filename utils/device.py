"""The device of the computations."""

from __future__ import annotations

import torch

from utils.errors import InputError

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: "cpu", "cuda", or "auto": CUDA if available, else the CPU.

    Raises:
        InputError: "cuda" without a CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: no CUDA device is available here; use --device cpu or auto."
        )
    return torch.device(name)
