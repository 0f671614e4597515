"""Run a command of the project in a separate process."""

from __future__ import annotations

import subprocess
import sys
import time


def run(*command: object) -> float:
    """Print a command as a user would type it, and run it.

    Args:
        *command: script, or "-m" and a module, and its arguments.

    Returns:
        Its run time, seconds.

    Raises:
        SystemExit: with the exit code of the command, if it fails.
    """
    words = [str(word) for word in command]
    print(f"\n$ python {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        sys.exit(code)
    return time.perf_counter() - start
