"""Initial weights of a network: our checkpoints, or published ones (SuperRetina, LoFTR, MINIMA)."""

from __future__ import annotations

from pathlib import Path

import torch

from model.loftr_vessel import LoFTRVessel
from model.super_retina_multimodal import SuperRetinaMultimodal
from utils.checkpoint import FORMAT, load_strictly, read_checkpoint, read_torch_file
from utils.config import to_plain
from utils.errors import InputError

# Layers of our decoder by their names in the official checkpoint, which has no module prefixes;
# all other layers belong to the encoder.
OFFICIAL_DECODER_PREFIXES = ("convD", "trans_conv", "dconv_up", "conv_last")


def load_pretrained(model: SuperRetinaMultimodal | LoFTRVessel, path: str | Path) -> str:
    """Load initial weights from a file.

    Args:
        model: the network that receives the weights, of the architecture of the file.
        path: our checkpoint of the same architecture, the official SuperRetina file, or a LoFTR
            or MINIMA checkpoint (``state_dict`` with or without the key prefix ``matcher.``).

    Returns:
        A line for the log with the number of tensors loaded.

    Raises:
        InputError: unreadable file or unmatched keys, with their count and names.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        ours = read_checkpoint(path, ["model", "model_settings"])
        settings = to_plain(model.settings)
        if ours["model_settings"] != settings:
            raise InputError(
                f"{path}: its weights do not fit this architecture: it was trained with "
                f"{ours['model_settings']}, not {settings}. Use the config it was trained with."
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
        renamed = {_with_prefix(name): tensor for name, tensor in state.items()}
    else:
        renamed = _from_official_layout(state, dual=model.moving_encoder is not None)
    return load_strictly(model, renamed, path)


def _with_prefix(name: str) -> str:
    """A key of a LoFTR file with the prefix of the module that holds kornia's network here."""
    return name if name.startswith("matcher.") else f"matcher.{name}"


def _from_official_layout(state: dict[str, torch.Tensor], dual: bool) -> dict[str, torch.Tensor]:
    """Rename the official keys (``conv1a.weight``, ...) to ours.

    With ``dual`` encoders both start from the weights of the single official encoder.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(OFFICIAL_DECODER_PREFIXES):
            renamed[f"decoder.{name}"] = tensor
        else:
            renamed[f"encoder.{name}"] = tensor
            if dual:
                renamed[f"moving_encoder.{name}"] = tensor
    return renamed
