"""Checkpoints: written atomically, read without executing anything, matched key by key.

A checkpoint is one dict: ``kind`` (which model), ``model_settings`` (arguments that rebuild it), ``match_settings``,
``model`` (weights), and, for resuming, ``optimizer``, ``scheduler``, ``scaler`` (of fp16), ``epoch`` (finished ones),
``progress`` (of the epoch under way), ``extra`` (value maps), ``history``, ``best_score``, ``config``. The model rebuilds
itself from the file alone.
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
    """Write a checkpoint atomically: a crash leaves the old file or the new one.

    Args:
        previous: where the old checkpoint goes.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_bytes_atomically(path, buffer.getvalue(), previous)


def read_checkpoint(path: str | Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read one of our checkpoints onto the CPU; no pickled code is executed.

    Args:
        required: parts that the caller needs.

    Raises:
        InputError: missing, damaged or foreign file, or a required part is missing.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of this project; train_multimodal_e2e.py writes latest.pth and "
            "best.pth. For the official SuperRetina weights use --pretrained with configs/superretina.yaml."
        )
    missing = [name for name in required if name not in content]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}; the file is incomplete, so train or copy it again."
        )
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
        _verify_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # Whatever a foreign or damaged file makes the reader raise means the same: the file is not to be used.
    except Exception as error:
        first_line = (
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )
        raise InputError(
            f"{path}: damaged, or holds more than tensors and plain values ({first_line[:160]}); "
            "copy or train it again."
        ) from error


def _verify_archive(path: Path) -> None:
    """Compare the checksums of a checkpoint: torch reads over damaged weights without a word.

    Raises:
        ValueError: a damaged record, or a compressed one, which torch does not write and which could unpack to anything.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's older format, which official weights may have
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("it is compressed, so torch did not write it")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> str:
    """Load weights; every key and shape must match on both sides.

    Returns:
        A line for the log: how many tensors and values were loaded.

    Raises:
        InputError: with the count and the first names of missing, unexpected and misshapen keys.
    """
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise InputError(f"{source}: its weights are no named tensors; copy or train it again.")
    own = model.state_dict()
    problems = []
    for title, names in (
        ("missing", sorted(set(own) - set(state))),
        ("unexpected", sorted(set(state) - set(own))),
        (
            "of another shape",
            sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape),
        ),
    ):
        if names:
            problems.append(
                f"{len(names)} {title} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            )
    if problems:
        raise InputError(
            f"{source}: its weights do not fit this architecture: {'; '.join(problems)}. "
            "Use the config it was trained with."
        )
    model.load_state_dict(state, strict=True)
    return f"{source}: loaded all {len(own)} tensors, {sum(tensor.numel() for tensor in own.values())} values"
