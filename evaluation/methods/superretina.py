"""The project's SuperRetina: the checkpoint given with --weights, or the shipped one."""

from __future__ import annotations

from evaluation.method import Method, MethodOptions
from evaluation.method_builders import by_checkpoint
from registration.registrar import DEFAULT_WEIGHTS


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_checkpoint`."""
    return by_checkpoint("superretina", DEFAULT_WEIGHTS, options)
