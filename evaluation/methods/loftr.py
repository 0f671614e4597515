"""This project's LoFTR: the checkpoint given with --loftr_weights, or the lite one that ships."""

from __future__ import annotations

from evaluation.method import Method, MethodSetting
from evaluation.methods.superretina import make_trained
from registration.registrar import PRETRAINED

DEFAULT_WEIGHTS = PRETRAINED / "loftr_v3_lite.pth"


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``."""
    return make_trained("loftr", DEFAULT_WEIGHTS, setting)
