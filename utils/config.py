"""Settings from YAML files onto typed dataclasses: an unknown key or a wrong type is an error that names the file."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from utils.errors import InputError

T = TypeVar("T")
MAX_FILE_BYTES = 4 << 20


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping, safely.

    Raises:
        InputError: missing file, broken YAML, or something other than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file; see configs/.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_FILE_BYTES >> 20} MB; that is no config file."
            )
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Besides its own errors the parser lets some of Python's through: impossible dates, numbers, depths of nesting.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
        OSError,
    ) as error:
        raise InputError(f"{path}: not valid YAML: {str(error)[:500]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a mapping of settings.")
    return content


def build(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Make a dataclass from a mapping; nested dataclasses from nested mappings; missing keys keep their defaults.

    Args:
        cls: a dataclass.
        values: from YAML or a checkpoint.
        where: named in errors: the file, then the path of keys.

    Raises:
        InputError: unknown key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: must be a mapping of settings, not {values!r}.")
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(str(key)[:60] for key in set(values) - known)
    if unknown:
        raise InputError(
            f"{where}: unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown[:20])}; "
            f"known are {', '.join(sorted(known))}."
        )
    converted = {
        name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()
    }
    try:
        return cls(**converted)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _short(value: Any) -> str:
    """For messages: a few aliases in a small YAML file can stand for a value of gigabytes."""
    return reprlib.repr(value)[:200]


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check a value against a type hint; lists become tuples, whole numbers floats where a float is wanted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (
            arguments[-1] is not Ellipsis and len(value) != len(arguments)
        ):
            raise InputError(
                f"{where}: must be a list of {'' if arguments[-1] is Ellipsis else len(arguments)} values, "
                f"not {_short(value)}."
            )
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: must be a mapping, not {_short(value)}.")
        return {
            str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()
        }
    if hint is float and isinstance(value, str):
        # YAML takes 1e-3 (without a point) for text.
        try:
            return float(value)
        except ValueError:
            raise InputError(f"{where}: must be float, not {_short(value)}.") from None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{where}: must be {hint.__name__}, not {_short(value)}.")
    return value


def to_plain(settings: Any) -> dict[str, Any]:
    """A dataclass as nested dicts and lists, for YAML and checkpoints; ``build`` makes it again."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(settings))
