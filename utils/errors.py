"""The project's own error types: every foreseeable fault of an input raises one of these.

A message says three things: which file or setting, what is wrong with it, and what to do about it. Scripts turn each of
them into one line on the terminal and an exit code of its own; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm


class InputError(Exception):
    """Something the user gave (a file, a folder, a setting) cannot be used; the message names it and the remedy."""


class NonFiniteLossError(RuntimeError):
    """A loss term or a gradient is NaN or infinite; the message names the term, the samples and the dump."""


class RunStoppedError(Exception):
    """A run was asked to stop before its last epoch (Ctrl-C, SIGTERM); the message says how to go on."""


EXIT_CODES = {InputError: 2, NonFiniteLossError: 3, RunStoppedError: 130}


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``: an error of ours becomes one line on the terminal and its code in ``EXIT_CODES``."""
    try:
        main()
    except tuple(EXIT_CODES) as error:
        # Not by print: a progress bar that the error cut short may still stand on the line.
        tqdm.write(
            f"{'stopped' if isinstance(error, RunStoppedError) else 'error'}: {error}",
            file=sys.stderr,
        )
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
