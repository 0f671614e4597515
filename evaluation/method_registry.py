"""Finds the methods by their files, and loads them.

``evaluation/methods/<name>.py`` is the method ``<name>``, with dashes in place of the underscores
of the file name. A new file is found without registration. A method whose package or weights are
missing raises :class:`evaluation.method.NotAvailable`; it is reported and the others are compared.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from evaluation import methods as methods_package
from evaluation.method import BARE_SUFFIX, Method, MethodOptions, NotAvailable
from registration.trained_matchers import TRAINABLE_MATCHERS
from utils.errors import InputError

# Methods of this project: they take their working size and settings from a checkpoint.
OWN = (*(entry.matcher.name for entry in TRAINABLE_MATCHERS.values()), "untrained")


def available_methods() -> list[str]:
    """Names of all methods that have a file, in alphabetical order."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(methods_package.__path__)
        if not module.name.startswith("_")
    )


def load_method(name: str, options: MethodOptions) -> Method:
    """Make a method by its name.

    Args:
        name: one of :func:`available_methods`.
        options: shared by all methods.

    Raises:
        InputError: there is no file of this name.
        NotAvailable: its package or its weights are missing.
    """
    if name not in available_methods():
        raise InputError(
            f"--compare {name}: no such method; there are {', '.join(available_methods())}."
        )
    module = importlib.import_module(f"{methods_package.__name__}.{name.replace('-', '_')}")
    return module.make(options)


def load_methods(
    names: list[str], options: MethodOptions
) -> tuple[dict[str, Method], dict[str, str]]:
    """Make several methods at comparable working sizes.

    If ``options.long_side`` is None, the project's own methods work at the size stored in their
    checkpoint, and all others at the size of the first checkpoint that could be loaded.

    Args:
        names: of the methods, in the order of the result.
        options: shared by all methods.

    Returns:
        The methods by their names in tables, which end with ``BARE_SUFFIX`` in the bare view, and
        for each method that cannot run here, the reason.

    Raises:
        InputError: an unknown name, or none of the methods can run here.
    """
    loaded: dict[str, Method] = {}
    missing: dict[str, str] = {}
    # Own methods first: their working size is the default of the others.
    for name in sorted(names, key=lambda name: name not in OWN):
        try:
            loaded[name] = load_method(name, options)
        except NotAvailable as error:
            missing[name] = str(error)
        if name in OWN and name in loaded and len(loaded) == 1:
            long_side = loaded[name].settings["match"]["long_side"]
            options = replace(options, default_long_side=long_side)
    if not loaded:
        raise InputError(f"--compare: none of these can run here: {'; '.join(missing.values())}")
    shown = {name: name + BARE_SUFFIX * loaded[name].is_bare for name in names if name in loaded}
    return {title: loaded[name] for name, title in shown.items()}, missing
