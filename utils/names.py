"""Names given by users that become files or folders."""

from __future__ import annotations

import re

FORBIDDEN_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f]')
RESERVED_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)),
}


def is_plain_name(name: str) -> bool:
    """Whether a name is a valid folder name on every system and stays inside its parent folder.

    Args:
        name: at most 200 bytes in UTF-8.
    """
    return (
        0 < len(name.encode("utf-8", "replace")) <= 200
        and not FORBIDDEN_IN_NAMES.search(name)
        and not name.startswith(".")
        and name == name.strip(" .")
        and name.lower() not in RESERVED_NAMES
    )
