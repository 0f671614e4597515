"""This project's LoFTR: the checkpoint given with --loftr_weights, or the lite one that ships."""
from __future__ import annotations

from baselines import Method, MethodSetting, NotAvailable
from baselines.superretina import make_trained
from register import PRETRAINED

DEFAULT_WEIGHTS = PRETRAINED / "loftr_v3_lite.pth"


def make(setting: MethodSetting) -> Method:
    """See ``baselines``.

    Raises:
        NotAvailable: no checkpoint is given, and none ships.
    """
    weights = setting.weights.get("loftr")
    if weights is None and not DEFAULT_WEIGHTS.is_file():
        raise NotAvailable("loftr: no weights; give a trained checkpoint with --loftr_weights")
    return make_trained(weights or str(DEFAULT_WEIGHTS), setting)
