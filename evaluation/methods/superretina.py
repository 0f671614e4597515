"""This project's own keypoint network, through the same pipeline as register.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from evaluation.method import Method, MethodSetting, NotAvailable, from_registration
from registration.registrar import DEFAULT_WEIGHTS, Registrar
from utils.config import to_plain
from utils.errors import InputError


def make_trained(name: str, default: Path, setting: MethodSetting) -> Method:
    """A method from one of the project's checkpoints: the one that is given for it, or the default.

    Raises:
        NotAvailable: none is given, and the default is not there.
        InputError: an unusable checkpoint, or one of another method than ``name``.
    """
    given = setting.weights.get(name)
    if given is None and not default.is_file():
        raise NotAvailable(
            f"{name}: no weights ({default} is not there); give a trained checkpoint"
        )
    registrar = Registrar(given or default, setting.transform, setting.long_side, setting.device)
    if registrar.matcher.name != name:
        raise InputError(
            f"{registrar.weights}: weights of {registrar.matcher.name}, not of {name}; give them as what they are."
        )
    checksum = hashlib.sha256(registrar.weights.read_bytes()).hexdigest()
    return Method(
        lambda pair: from_registration(registrar.register(pair.fixed, pair.moving).registration),
        {
            "weights": str(registrar.weights),
            "weights_sha256": checksum,
            "transform": setting.transform,
            "match": to_plain(registrar.matcher.settings),
            "plausibility": to_plain(registrar.plausibility),
            "device": str(registrar.matcher.device),
            "torch": torch.__version__,
        },
    )


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``."""
    return make_trained("superretina", DEFAULT_WEIGHTS, setting)
