"""Models from configs, from our checkpoints and from published weights (SuperRetina; LoFTR and MINIMA)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from geometry.estimation import Plausibility
from model.loftr_vessel import LoFTRSettings, LoFTRVessel
from model.super_retina_multimodal import ModelSettings, SuperRetinaMultimodal
from registration.keypoint_matcher import SuperRetinaMatcher
from registration.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings
from registration.matcher import Matcher, MatchSettings
from utils.checkpoint import load_strictly, read_checkpoint
from utils.config import build, to_plain
from utils.errors import InputError

KIND, LOFTR_KIND = "superretina_multimodal", "loftr_vessel"


class ModelKind(NamedTuple):
    """What belongs to a kind of model: its settings, the network, how it is matched with."""

    settings: type
    network: Callable[..., nn.Module]
    match_settings: type
    matcher: type[Matcher]


TRAINABLE_MATCHERS = {
    KIND: ModelKind(ModelSettings, SuperRetinaMultimodal, MatchSettings, SuperRetinaMatcher),
    LOFTR_KIND: ModelKind(LoFTRSettings, LoFTRVessel, LoFTRMatchSettings, LoFTRMatcher),
}


def _kind_of(settings: ModelSettings | LoFTRSettings) -> str:
    return next(
        name for name, kind in TRAINABLE_MATCHERS.items() if isinstance(settings, kind.settings)
    )


def build_model(settings: ModelSettings | LoFTRSettings) -> nn.Module:
    """An untrained network of the kind that the settings belong to."""
    return TRAINABLE_MATCHERS[_kind_of(settings)].network(settings)


def describe_model(
    settings: ModelSettings | LoFTRSettings,
    match_settings: MatchSettings,
    plausibility: Plausibility | None = None,
) -> dict[str, Any]:
    """The part of a checkpoint from which the model rebuilds itself, and registers as it was validated."""
    return {
        "kind": _kind_of(settings),
        "model_settings": to_plain(settings),
        "match_settings": to_plain(match_settings),
        "plausibility": to_plain(plausibility or Plausibility()),
    }


def load_matcher(
    path: str | Path, device: torch.device | str = "cpu", long_side: int | None = None
) -> tuple[Matcher, Plausibility]:
    """A ready matcher from a checkpoint alone; the checkpoint says of which kind.

    Args:
        path: one of our checkpoints.
        device: where the network goes.
        long_side: working size in place of the checkpoint's.

    Returns:
        The matcher, and the limits on its transforms.

    Raises:
        InputError: unreadable checkpoint, unknown kind of model, unmatched keys.
    """
    content = read_checkpoint(
        path, ("kind", "model_settings", "match_settings", "plausibility", "model")
    )
    kind = _kind_in(content, path)
    model = build_model(build(kind.settings, content["model_settings"], f"{path}: model_settings"))
    load_strictly(model, content["model"], path)
    match_settings = dict(content["match_settings"])
    if long_side is not None:
        match_settings["long_side"] = long_side
    model = model.to(device, memory_format=torch.channels_last).eval()
    matcher = kind.matcher(
        model, build(kind.match_settings, match_settings, f"{path}: match_settings"), device
    )
    return matcher, build(Plausibility, content["plausibility"], f"{path}: plausibility")


def method_of(path: str | Path) -> str:
    """Name of the method that a checkpoint of ours belongs to: "superretina" or "loftr".

    Raises:
        InputError: unreadable checkpoint, or one of an unknown kind.
    """
    return _kind_in(read_checkpoint(path, ["kind"]), path).matcher.name


def _kind_in(content: dict[str, Any], path: str | Path) -> ModelKind:
    if content["kind"] not in TRAINABLE_MATCHERS:
        raise InputError(
            f"{path}: holds a model of kind '{content['kind']}', not one of {', '.join(TRAINABLE_MATCHERS)}."
        )
    return TRAINABLE_MATCHERS[content["kind"]]
