"""Checkpoints: written atomically, read without executing code, matched key by key.

A checkpoint is one dict. To rebuild the model from the file alone: ``kind`` (of model),
``model_settings``, ``match_settings``, ``plausibility``, ``model`` (weights). To resume a run:
``optimizer``, ``scheduler``, ``scaler`` (of fp16), ``epoch`` (number of finished epochs),
``progress`` (of the epoch under way), ``total_steps`` (of the run, plus one), ``extra`` (value
maps), ``history``, ``best_score``, ``best_epoch`` and ``config`` (settings and data of the run).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import InputError
from utils.files import write_bytes_atomically

FORMAT = "retinal-registration-checkpoint-1"


def save_checkpoint(
    path: str | Path, content: dict[str, Any], previous: Path | None = None
) -> None:
    """Write a checkpoint atomically: after a crash the file is the old or the new one.

    Args:
        path: of the checkpoint.
        content: tensors and plain values.
        previous: the old checkpoint is renamed to this; None replaces it.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_bytes_atomically(path, buffer.getvalue(), previous)


def read_checkpoint(path: str | Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU; no pickled code is executed.

    Args:
        path: of the checkpoint.
        required: parts that the caller needs.

    Raises:
        InputError: missing, damaged or foreign file, or a required part is missing.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of this project; train_multimodal_e2e.py writes latest.pth "
            "and best.pth. For the official SuperRetina weights use --pretrained with "
            "configs/superretina.yaml."
        )
    missing = [name for name in required if name not in content]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}; a released file has no state of its training, so "
            "start from it with --pretrained; else the file is incomplete: copy or train it again."
        )
    return content


def read_torch_file(path: str | Path) -> Any:
    """``torch.load`` with ``weights_only=True``, and errors that name the file.

    Args:
        path: of the file.

    Raises:
        InputError: missing, damaged, or holding anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file; train first or check the path.")
    try:
        _verify_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # A foreign or damaged file can make the reader raise any exception; each means that the file
    # cannot be used.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path}: damaged, or holds more than tensors and plain values ({lines[0][:160]}); "
            "copy or train it again."
        ) from error


def _verify_archive(path: Path) -> None:
    """Verify the checksums of a checkpoint, which torch does not do.

    Raises:
        ValueError: a damaged record, or a compressed one: torch does not write those, and they
            could unpack to any size.
    """
    if not zipfile.is_zipfile(path):
        return  # the older format of torch, which published weights may have
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("it is compressed, so torch did not write it")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> str:
    """Load weights; every key and every shape must match.

    Args:
        model: receives the weights.
        state: tensors by name.
        source: file of the weights, named in messages.

    Returns:
        A line for the log with the number of tensors and values.

    Raises:
        InputError: names and counts missing keys, unexpected keys and keys of another shape.
    """
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise InputError(f"{source}: its weights are no named tensors; copy or train it again.")
    own = model.state_dict()
    shared = set(own) & set(state)
    unfit = {
        "missing": set(own) - set(state),
        "unexpected": set(state) - set(own),
        "of another shape": {name for name in shared if own[name].shape != state[name].shape},
    }
    problems = [
        f"{len(names)} {title} ({', '.join(sorted(names)[:4])}{', ...' if len(names) > 4 else ''})"
        for title, names in unfit.items()
        if names
    ]
    if problems:
        raise InputError(
            f"{source}: its weights do not fit this architecture: {'; '.join(problems)}. "
            "Use the config it was trained with."
        )
    model.load_state_dict(state, strict=True)
    n_values = sum(tensor.numel() for tensor in own.values())
    return f"{source}: loaded all {len(own)} tensors, {n_values} values"
