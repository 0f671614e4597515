"""Error types for every foreseeable fault of an input.

A message names the file or setting, what is wrong with it, and the remedy. A script prints it as
one line and ends with the exit code of its type. Any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm


class InputError(Exception):
    """A file, a folder or a setting cannot be used; the message names it and the remedy."""


class NonFiniteLossError(RuntimeError):
    """A loss term or a gradient is NaN or infinite.

    The message names the term, the samples and the checkpoint with the step.
    """


class RunStoppedError(Exception):
    """A run was stopped before its last epoch (Ctrl-C, SIGTERM); the message names the command that
    continues it."""


EXIT_CODES = {InputError: 2, NonFiniteLossError: 3, RunStoppedError: 130}


def run_script(main: Callable[[], None]) -> None:
    """Run a script; an error type of this module becomes one line and its code in ``EXIT_CODES``.

    Args:
        main: of the script.

    Raises:
        SystemExit: with the exit code of the error.
    """
    try:
        main()
    except tuple(EXIT_CODES) as error:
        # tqdm.write clears a progress bar that is still on the line; print would not.
        tqdm.write(
            f"{'stopped' if isinstance(error, RunStoppedError) else 'error'}: {error}",
            file=sys.stderr,
        )
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
