"""The project's LoFTR: the checkpoint given with --loftr_weights, or the shipped small one."""

from __future__ import annotations

from evaluation.method import Method, MethodOptions
from evaluation.method_builders import by_checkpoint
from registration.registrar import PRETRAINED

DEFAULT_WEIGHTS = PRETRAINED / "loftr_v3_lite.pth"


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_checkpoint`."""
    return by_checkpoint("loftr", DEFAULT_WEIGHTS, options)
