"""Checkpoints: written atomically, read without executing anything, matched key by key.

A checkpoint is one dict: ``kind`` (which model), ``model_settings`` (arguments that rebuild it), ``match_settings``,
``model`` (weights), and, for resuming, ``optimizer``, ``scheduler``, ``epoch``, ``extra`` (value maps), ``random_state``,
``history``, ``best_score``, ``config``. The model rebuilds itself from the file alone.
"""
from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import InputError
from utils.image_io import write_bytes_atomically

FORMAT = "retinal-registration-checkpoint-1"


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a crash leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def read_checkpoint(path: str | Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read one of our checkpoints onto the CPU; no pickled code is executed.

    Args:
        required: parts that the caller needs.

    Raises:
        InputError: missing, damaged or foreign file, or a required part is missing.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this project; train_multimodal_e2e.py writes latest.pth and "
                         "best.pth. For the official SuperRetina weights use --pretrained with configs/superretina.yaml.")
    missing = [name for name in required if name not in content]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; the file is incomplete, so train or copy it again.")
    return content


def read_torch_file(path: str | Path) -> Any:
    """``torch.load`` with ``weights_only=True`` and errors that name the file.

    Raises:
        InputError: missing, damaged, or holding anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file; train first or check the path.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: damaged, or holds more than tensors and plain values ({first_line[:160]}); "
                         "copy or train it again.") from error


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> str:
    """Load weights; every key and shape must match on both sides.

    Returns:
        A line for the log: how many tensors and values were loaded.

    Raises:
        InputError: with the count and the first names of missing, unexpected and misshapen keys.
    """
    own = model.state_dict()
    problems = []
    for title, names in (("missing", sorted(set(own) - set(state))), ("unexpected", sorted(set(state) - set(own))),
                         ("of another shape", sorted(name for name in set(own) & set(state)
                                                     if own[name].shape != state[name].shape))):
        if names:
            problems.append(f"{len(names)} {title} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})")
    if problems:
        raise InputError(f"{source}: its weights do not fit this architecture: {'; '.join(problems)}. "
                         "Use the config it was trained with.")
    model.load_state_dict(state, strict=True)
    return f"{source}: loaded all {len(own)} tensors, {sum(tensor.numel() for tensor in own.values())} values"
