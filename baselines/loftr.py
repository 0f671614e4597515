"""This project's LoFTR, when a checkpoint of it is given with --loftr_weights."""
from __future__ import annotations

from baselines import Method, MethodSetting, NotAvailable
from baselines.superretina import make_trained


def make(setting: MethodSetting) -> Method:
    """See ``baselines``.

    Raises:
        NotAvailable: no checkpoint is given.
    """
    weights = setting.weights.get("loftr")
    if weights is None:
        raise NotAvailable("loftr: no weights; give a trained checkpoint with --loftr_weights")
    return make_trained(weights, setting)
