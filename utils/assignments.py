"""Settings given as text, ``key.sub=value``, on top of settings from a file or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from utils.config import build, check_types, merge_settings, parse_yaml, to_plain
from utils.errors import InputError

T = TypeVar("T")
OPTION = "--set"  # the argument that takes assignments, for messages
MAX_LEVELS = 8  # of a key; chosen by hand, the configs have three


def parse_assignment(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``key.sub=value``.

    Args:
        text: the value is parsed as YAML, so ``true``, ``[1, 2]`` and ``{a: 1}`` have their
            meaning; an empty value is null.

    Returns:
        The key with its dots, and the nested mapping that sets it.

    Raises:
        InputError: no ``=``, an empty or too long key, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    levels = key.strip().split(".")
    if not equals or not all(levels) or len(levels) > MAX_LEVELS:
        raise InputError(f"{OPTION} {text[:80]!r}: must be key=value or key.sub=value.")
    content = parse_yaml(value, f"{OPTION} {'.'.join(levels)}")
    for level in reversed(levels):
        content = {level: content}
    return ".".join(levels), content


def with_assignments(settings: T, texts: Sequence[str], fixed: Sequence[str] = ()) -> T:
    """Settings with assignments on top; they are checked as a config file is.

    A mapping is merged with the one that it assigns to; any other value replaces it. Of two
    assignments to one key the last one counts.

    Args:
        settings: a dataclass of nested dataclasses.
        texts: each ``key.sub=value``.
        fixed: names of top-level settings that may not be assigned.

    Raises:
        InputError: unknown key, a value of the wrong type, or an impossible value; the message
            names the assignments.
    """
    changed = to_plain(settings)
    names = []
    for text in texts:
        name, change = parse_assignment(text)
        if set(change) & set(fixed):
            raise InputError(f"{OPTION} {name}: the script sets this; leave it out.")
        check_types(type(settings), change, f"{OPTION} {name}")
        changed = merge_settings(changed, change)
        names.append(name)
    return build(type(settings), changed, f"{OPTION} {' '.join(names)}") if names else settings
