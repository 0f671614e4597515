"""Models from configs, from our checkpoints and from the official SuperRetina weights."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.registration import MatchSettings, SuperRetinaMatcher
from model.super_retina_multimodal import SuperRetinaMultimodal
from utils.checkpoint import FORMAT, load_strictly, read_checkpoint, read_torch_file
from utils.config import build, to_plain
from utils.errors import InputError
from utils.geometry import Plausibility

KIND = "superretina_multimodal"
# The official checkpoint is flat; these layers belong to our decoder, all others to the encoder.
OFFICIAL_DECODER_PREFIXES = ("convD", "trans_conv", "dconv_up", "conv_last")


@dataclass(frozen=True)
class ModelSettings:
    """Arguments of :class:`model.super_retina_multimodal.SuperRetinaMultimodal`; see there."""

    architecture: str = "lite"
    encoders: str = "shared"
    stem: str = "ridge"
    ridge_sigmas: tuple[float, ...] = (1.3, 2.2, 3.6)
    widths: tuple[int, ...] = (16, 32, 64, 96, 96)
    descriptor_dim: int = 64


def build_model(settings: ModelSettings) -> SuperRetinaMultimodal:
    """An untrained network."""
    return SuperRetinaMultimodal(**to_plain(settings))


def describe_model(settings: ModelSettings, match_settings: MatchSettings,
                   plausibility: Plausibility | None = None) -> dict[str, Any]:
    """The part of a checkpoint from which the model rebuilds itself, and registers as it was validated."""
    return {"kind": KIND, "model_settings": to_plain(settings), "match_settings": to_plain(match_settings),
            "plausibility": to_plain(plausibility or Plausibility())}


def load_matcher(path: str | Path, device: torch.device | str = "cpu",
                 long_side: int | None = None) -> tuple[SuperRetinaMatcher, Plausibility]:
    """A ready matcher from a checkpoint alone.

    Args:
        path: one of our checkpoints.
        device: where the network goes.
        long_side: working size in place of the checkpoint's.

    Returns:
        The matcher, and the limits on its transforms.

    Raises:
        InputError: unreadable checkpoint, another kind of model, unmatched keys.
    """
    content = read_checkpoint(path, ("kind", "model_settings", "match_settings", "plausibility", "model"))
    if content.get("kind") != KIND:
        raise InputError(f"{path}: holds a model of kind '{content.get('kind')}', not '{KIND}'.")
    model = build_model(build(ModelSettings, content["model_settings"], f"{path}: model_settings"))
    load_strictly(model, content["model"], path)
    match_settings = dict(content["match_settings"])
    if long_side is not None:
        match_settings["long_side"] = long_side
    model = model.to(device, memory_format=torch.channels_last).eval()
    matcher = SuperRetinaMatcher(model, build(MatchSettings, match_settings, f"{path}: match_settings"), device)
    return matcher, build(Plausibility, content["plausibility"], f"{path}: plausibility")


def load_pretrained(model: SuperRetinaMultimodal, path: str | Path) -> str:
    """Start from other weights: our checkpoint of the same architecture, or the official SuperRetina file.

    Returns:
        A line for the log with the number of tensors loaded.

    Raises:
        InputError: unreadable file or unmatched keys, with their count and names.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        ours = read_checkpoint(path, ["model", "model_settings"])
        if ours["model_settings"] != model.arguments:
            raise InputError(f"{path}: its weights do not fit this architecture: it was trained with {ours['model_settings']}, "
                             f"not {model.arguments}. Use the config it was trained with.")
        return load_strictly(model, ours["model"], path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: neither a checkpoint of this project nor SuperRetina weights.")
    state = content.get("net", content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: neither a checkpoint of this project nor SuperRetina weights.")
    return load_strictly(model, _from_official_layout(state, dual=model.moving_encoder is not None), path)


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
