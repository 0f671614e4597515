"""Parts of a network by name: the parameters that a name stands for, and freezing them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from utils.errors import InputError


def parameters_named(model: nn.Module, name: str, where: str) -> dict[str, nn.Parameter]:
    """The parameters that a name stands for.

    Args:
        model: the network.
        name: of a parameter or of a module that contains it, as in ``named_parameters``; with
            ``*`` and ``?`` as in file names (``*encoder.blocks.?``).
        where: the setting, named in errors.

    Returns:
        Parameters by their full names; at least one.

    Raises:
        InputError: no parameter has this name.
    """
    found = {
        full: parameter
        for full, parameter in model.named_parameters()
        if any(fnmatchcase(part, name) for part in _leading_names(full))
    }
    if not found:
        top = dict.fromkeys(full.partition(".")[0] for full, _ in model.named_parameters())
        raise InputError(
            f"{where}: no part of the network is named {name!r}; the top-level names are "
            f"{', '.join(top)}. A name below them, such as {next(model.named_parameters())[0]}, or "
            "a pattern with * is possible too."
        )
    return found


def _leading_names(full: str) -> list[str]:
    """``a.b.c`` as ``a``, ``a.b`` and ``a.b.c``."""
    parts = full.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def freeze_named(model: nn.Module, names: Sequence[str], where: str) -> list[nn.Module]:
    """Stop the training of parts of a network; gradients still pass through them.

    Args:
        model: its frozen parameters no longer require a gradient.
        names: as for :func:`parameters_named`.
        where: the setting, named in errors.

    Returns:
        The modules whose parameters are all frozen. To keep the running statistics of their
        normalisation, set them to evaluation mode after every ``model.train()``.

    Raises:
        InputError: no parameter has one of the names, or none is left to train.
    """
    for name in names:
        for parameter in parameters_named(model, name, where).values():
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{where} {' '.join(names)}: no parameter is left to train; freeze less.")
    frozen = []
    for module in model.modules():
        own = list(module.parameters())
        if names and own and not any(parameter.requires_grad for parameter in own):
            frozen.append(module)
    return frozen
