"""This project's LoFTR: the checkpoint given with --loftr_weights, or the lite one that ships."""

from __future__ import annotations

from baselines import Method, MethodSetting
from baselines.superretina import make_trained
from register import PRETRAINED

DEFAULT_WEIGHTS = PRETRAINED / "loftr_v3_lite.pth"


def make(setting: MethodSetting) -> Method:
    """See ``baselines``."""
    return make_trained("loftr", DEFAULT_WEIGHTS, setting)
