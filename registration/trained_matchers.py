"""The registry of trainable matchers: networks and matchers from settings and from checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from geometry.estimation import Plausibility
from model.loftr_vessel import LoFTRSettings, LoFTRVessel
from model.super_retina_multimodal import ModelSettings, SuperRetinaMultimodal
from registration.keypoint_matcher import KeypointMatchSettings, SuperRetinaMatcher
from registration.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings
from registration.matcher import Matcher, MatchSettings
from utils.checkpoint import load_strictly, read_checkpoint
from utils.config import build, to_plain
from utils.errors import InputError


class TrainableMatcher(NamedTuple):
    """The classes of a trainable matcher.

    Attributes:
        settings: dataclass of the network's settings.
        network: class of the network, made from ``settings``.
        match_settings: dataclass of the matcher's settings.
        matcher: class of the matcher, made from network, ``match_settings`` and device.
    """

    settings: type[Any]
    network: Callable[..., nn.Module]
    match_settings: type[MatchSettings]
    matcher: type[Matcher]


# Keyed by the entry ``kind`` of a checkpoint. A new trainable matcher needs one line here.
TRAINABLE_MATCHERS = {
    "superretina_multimodal": TrainableMatcher(
        settings=ModelSettings,
        network=SuperRetinaMultimodal,
        match_settings=KeypointMatchSettings,
        matcher=SuperRetinaMatcher,
    ),
    "loftr_vessel": TrainableMatcher(
        settings=LoFTRSettings,
        network=LoFTRVessel,
        match_settings=LoFTRMatchSettings,
        matcher=LoFTRMatcher,
    ),
}

# The parts of a checkpoint that :func:`load_matcher` needs; a released file holds only these.
INFERENCE_PARTS = ("kind", "model_settings", "match_settings", "plausibility", "model")


def _kind_of(settings: Any) -> str:
    return next(
        kind for kind, entry in TRAINABLE_MATCHERS.items() if isinstance(settings, entry.settings)
    )


def build_model(settings: Any) -> nn.Module:
    """An untrained network.

    Args:
        settings: of the network, one of the ``settings`` classes in ``TRAINABLE_MATCHERS``.
    """
    return TRAINABLE_MATCHERS[_kind_of(settings)].network(settings)


def describe_model(
    settings: Any, match_settings: MatchSettings, plausibility: Plausibility | None = None
) -> dict[str, Any]:
    """Entries of a checkpoint from which :func:`load_matcher` builds the matcher.

    Args:
        settings: of the network.
        match_settings: of the matcher, as in the validation.
        plausibility: limits on the transforms; the defaults when None.
    """
    return {
        "kind": _kind_of(settings),
        "model_settings": to_plain(settings),
        "match_settings": to_plain(match_settings),
        "plausibility": to_plain(plausibility or Plausibility()),
    }


def load_matcher(
    path: str | Path, device: torch.device | str = "cpu", long_side: int | None = None
) -> tuple[Matcher, Plausibility]:
    """A matcher from a checkpoint alone, which names its kind.

    Args:
        path: one of our checkpoints.
        device: where the network goes.
        long_side: working size in pixels; that of the checkpoint when None.

    Returns:
        The matcher, and the limits on its transforms.

    Raises:
        InputError: unreadable checkpoint, unknown kind of model, unmatched keys.
    """
    content = read_checkpoint(path, INFERENCE_PARTS)
    model = build_model(_settings_of(content, path, "model_settings"))
    load_strictly(model, content["model"], path)
    matcher = _make_matcher(model, content, path, device, long_side)
    return matcher, build(
        Plausibility, content["plausibility"], f"{path}: plausibility", from_checkpoint=True
    )


def untrained_matcher(
    path: str | Path,
    seed: int,
    device: torch.device | str = "cpu",
    long_side: int | None = None,
) -> Matcher:
    """The matcher of a checkpoint with the initial weights of a new training run.

    Network and settings are those of the checkpoint; its weights are not used.

    Args:
        path: one of our checkpoints.
        seed: of the random weights. The global random state is left as it was.
        device: where the network goes.
        long_side: working size in pixels; that of the checkpoint when None.

    Raises:
        InputError: unreadable checkpoint, or unknown kind of model.
    """
    content = read_checkpoint(path, INFERENCE_PARTS)
    # Networks are built on the CPU, so no other generator draws.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build_model(_settings_of(content, path, "model_settings"))
    return _make_matcher(model, content, path, device, long_side)


def _settings_of(content: dict[str, Any], path: str | Path, key: str) -> Any:
    """The settings of the network ("model_settings") or the matcher ("match_settings")."""
    entry = _entry_of(content, path)
    cls = {"model_settings": entry.settings, "match_settings": entry.match_settings}[key]
    return build(cls, content[key], f"{path}: {key}", from_checkpoint=True)


def _make_matcher(
    model: nn.Module,
    content: dict[str, Any],
    path: str | Path,
    device: torch.device | str,
    long_side: int | None,
) -> Matcher:
    if long_side is not None:
        content["match_settings"] = content["match_settings"] | {"long_side": long_side}
    # The type stubs of Module.to lack the combination of a device and a memory format.
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
    make_matcher: Callable[..., Matcher] = _entry_of(content, path).matcher
    return make_matcher(model, _settings_of(content, path, "match_settings"), device)


def method_of(path: str | Path) -> str:
    """Name of the method of a checkpoint: the ``name`` of a matcher in ``TRAINABLE_MATCHERS``.

    Args:
        path: one of our checkpoints.

    Raises:
        InputError: unreadable checkpoint, or one of an unknown kind.
    """
    return _entry_of(read_checkpoint(path, ["kind"]), path).matcher.name


def _entry_of(content: dict[str, Any], path: str | Path) -> TrainableMatcher:
    kind = content["kind"]
    if kind not in TRAINABLE_MATCHERS:
        raise InputError(
            f"{path}: holds a model of kind '{kind}', not one of {', '.join(TRAINABLE_MATCHERS)}."
        )
    return TRAINABLE_MATCHERS[kind]
