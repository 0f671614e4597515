"""Layouts of real pairs: one file each, found automatically.

To add a layout, add a module to this package that defines ``LAYOUT``, a
:class:`dataset.real_pair_files.Layout`. Its name then is a choice of ``--layout``, and ``auto``
tries its ``recognise`` in alphabetical order of the names.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from dataset.real_pair_files import Layout


def _defined_layouts() -> dict[str, Layout]:
    """The layout of every module of this package by its name, in alphabetical order."""
    modules = (
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    )
    layouts: list[Layout] = [module.LAYOUT for module in modules]
    return {layout.name: layout for layout in sorted(layouts, key=lambda layout: layout.name)}


LAYOUT_BY_NAME = _defined_layouts()
LAYOUTS = ("auto", *LAYOUT_BY_NAME)


def recognise_layout(root: Path) -> Layout | None:
    """The first layout, in alphabetical order, that recognises a folder; None when none does."""
    return next((layout for layout in LAYOUT_BY_NAME.values() if layout.recognise(root)), None)
