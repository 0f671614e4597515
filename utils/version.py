"""The version of the program, for ``--version`` and for records of results."""

from __future__ import annotations

import argparse

VERSION = "2.0.0.dev0"


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``, which prints the version and ends.

    Args:
        parser: of a script.
    """
    parser.add_argument("--version", action="version", version=f"retinal-registration {VERSION}")
