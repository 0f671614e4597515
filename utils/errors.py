"""The project's own error types: every foreseeable fault of an input raises one of these.

A message says three things: which file or setting, what is wrong with it, and what to do about it. Scripts turn an
``InputError`` into one line on the terminal and exit code 2; anything else is a bug and keeps its traceback.
"""
from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the user gave (a file, a folder, a setting) cannot be used; the message names it and the remedy."""


class NonFiniteLossError(RuntimeError):
    """A loss term or a gradient is NaN or infinite; the message names the term and the samples."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``: an :class:`InputError` becomes one line on the terminal and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
