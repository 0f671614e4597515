"""This project's own keypoint network, through the same pipeline as register.py."""
from __future__ import annotations

import hashlib

from baselines import Method, MethodSetting, from_registration
from register import Registrar
from utils.config import to_plain


def make_trained(weights: str | None, setting: MethodSetting) -> Method:
    """A method from one of the project's checkpoints, of whatever kind it is.

    Raises:
        InputError: missing or unusable checkpoint.
    """
    registrar = Registrar(weights, setting.transform, setting.long_side, setting.device)
    checksum = hashlib.sha256(registrar.weights.read_bytes()).hexdigest()
    return Method(lambda pair: from_registration(registrar.register(pair.fixed, pair.moving).registration),
                  {"weights": str(registrar.weights), "weights_sha256": checksum,
                   "transform": setting.transform, "match": to_plain(registrar.matcher.settings),
                   "plausibility": to_plain(registrar.plausibility)})


def make(setting: MethodSetting) -> Method:
    """See ``baselines``."""
    return make_trained(setting.weights.get("superretina"), setting)
