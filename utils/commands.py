"""Run one of the project's commands in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time


def run(*command: object) -> float:
    """Run one of the project's scripts, showing the command as a user would type it. Returns its seconds.

    Raises:
        SystemExit: with the script's exit code when it fails.
    """
    words = [str(word) for word in command]
    print(f"\n$ python {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        sys.exit(code)
    return time.perf_counter() - start
