"""Start a network from other weights: our checkpoints, or published ones (SuperRetina; LoFTR and MINIMA)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model.loftr_vessel import LoFTRVessel
from utils.checkpoint import FORMAT, load_strictly, read_checkpoint, read_torch_file
from utils.errors import InputError

# The official checkpoint is flat; these layers belong to our decoder, all others to the encoder.
OFFICIAL_DECODER_PREFIXES = ("convD", "trans_conv", "dconv_up", "conv_last")


def load_pretrained(model: nn.Module, path: str | Path) -> str:
    """Start from other weights: our checkpoint of the same architecture, or published ones: the official SuperRetina
    file, or a LoFTR or MINIMA checkpoint (``state_dict`` with keys that start with ``matcher.``).

    Returns:
        A line for the log with the number of tensors loaded.

    Raises:
        InputError: unreadable file or unmatched keys, with their count and names.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        ours = read_checkpoint(path, ["model", "model_settings"])
        if ours["model_settings"] != model.arguments:
            raise InputError(
                f"{path}: its weights do not fit this architecture: it was trained with {ours['model_settings']}, "
                f"not {model.arguments}. Use the config it was trained with."
            )
        return load_strictly(model, ours["model"], path)
    wrapper, title = (
        ("state_dict", "LoFTR") if isinstance(model, LoFTRVessel) else ("net", "SuperRetina")
    )
    state = content.get(wrapper, content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise InputError(f"{path}: neither a checkpoint of this project nor {title} weights.")
    if isinstance(model, LoFTRVessel):
        return load_strictly(
            model, {_with_prefix(name): tensor for name, tensor in state.items()}, path
        )
    return load_strictly(
        model, _from_official_layout(state, dual=model.moving_encoder is not None), path
    )


def _with_prefix(name: str) -> str:
    """LoFTR files are written with or without the name of the module that held the network."""
    return name if name.startswith("matcher.") else f"matcher.{name}"


def _from_official_layout(state: dict[str, torch.Tensor], dual: bool) -> dict[str, torch.Tensor]:
    """Rename the official keys (``conv1a.weight``, ...) to ours; dual encoders both start from the one encoder."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(OFFICIAL_DECODER_PREFIXES):
            renamed[f"decoder.{name}"] = tensor
        else:
            renamed[f"encoder.{name}"] = tensor
            if dual:
                renamed[f"moving_encoder.{name}"] = tensor
    return renamed
