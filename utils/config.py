"""Settings: read from YAML files, merged along `base:`, converted to typed dataclasses.

An unknown key or a value of the wrong type raises an error that names the file and the key.
"""

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
MAX_FILE_BYTES = 4 << 20  # chosen by hand; the shipped configs have about 1 KB
MAX_BASES = 4  # longest chain of `base:` keys, chosen by hand
MAX_VALUE_CHARACTERS = 200  # of a value printed in a message
MAX_NAMED_KEYS = 20  # unknown keys listed in a message


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, with an error for a key that occurs twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See ``yaml.SafeLoader``."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    problem = f"the key {key.value!r} occurs twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML with the safe loader.

    Args:
        text: of one document.
        where: file or setting, named in errors.

    Raises:
        InputError: invalid YAML.
    """
    # Besides YAMLError the parser raises built-in errors: for impossible dates, for numbers out
    # of range, for too deep nesting.
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
    ) as error:
        raise InputError(f"{where}: not valid YAML: {str(error)[:500]}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping with the safe loader; `base:` is an ordinary key here.

    Args:
        path: of the YAML file, at most ``MAX_FILE_BYTES`` long.

    Raises:
        InputError: missing file, invalid YAML, or content that is not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file; see configs/.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_FILE_BYTES >> 20} MB; that is no config file."
            )
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {str(error)[:500]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a mapping of settings.")
    return content


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a config file and the files that its `base:` key refers to.

    ``base: other.yaml`` (relative to the folder of the file that contains the key) loads the
    other file first; the file's own values replace those of the base, see :func:`merge_settings`.
    A base can have a base in turn, at most ``MAX_BASES`` in a row. A mapping under `base:` is not a
    reference but a section of settings: the stage "base" of LoFTR.

    Args:
        path: of the YAML file.

    Returns:
        The merged settings, without the references.

    Raises:
        InputError: see :func:`read_yaml`; a base that is missing or not a file name; a cycle; or
            a chain that is too long. The message names the files.
    """
    chain: list[Path] = []  # the file itself, its base, the base of that, ...
    contents: list[dict[str, Any]] = []
    following: Path | None = Path(path)
    while following is not None:
        chain.append(following)
        content = read_yaml(following)
        is_section = isinstance(content.get("base"), dict)
        base = None if is_section else content.pop("base", None)
        contents.append(content)
        following = None if base is None else _base_path(base, chain)
    settings: dict[str, Any] = {}
    for content in reversed(contents):
        settings = merge_settings(settings, content)
    return settings


def _base_path(base: Any, chain: list[Path]) -> Path:
    """The file that a `base:` key refers to.

    Args:
        base: value of the key.
        chain: the files read so far; the last one contains the key.

    Raises:
        InputError: not a file name, a missing file, a cycle or a chain that is too long.
    """
    path = chain[-1]
    if not isinstance(base, str):
        raise InputError(f"{path}: base: must be the name of a config file, not {_short(base)}.")
    target = path.parent / base
    listed = " -> ".join(str(file) for file in [*chain, target])
    if not target.is_file():
        raise InputError(
            f"{path}: base: no such config file: {target}. "
            f"Write the path relative to {path.parent}, or remove the key."
        )
    if target.resolve() in {file.resolve() for file in chain}:
        raise InputError(f"{listed}: the configs are each other's base; remove one base: key.")
    if len(chain) > MAX_BASES:
        raise InputError(
            f"{listed}: more than {MAX_BASES} configs in a chain of base: keys; merge some."
        )
    return target


def merge_settings(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The values of ``base`` with those of ``change`` on top, level by level.

    Nested mappings are merged; any other value, lists included, replaces the one in ``base``.

    Args:
        base, change: settings as read from YAML; neither is modified.
    """
    result = dict(base)
    for name, value in change.items():
        nested = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merge_settings(result[name], value) if nested else value
    return result


def build(cls: type[T], values: dict[str, Any], where: str, from_checkpoint: bool = False) -> T:
    """Make a dataclass from a mapping; nested dataclasses from nested mappings.

    Missing keys keep their defaults. A dataclass can list settings of earlier versions in
    ``RETIRED_KEYS: ClassVar[tuple[str, ...]]``: checkpoints still hold them, and they are left
    out; in a YAML file they are unknown keys.

    Args:
        cls: a dataclass.
        values: from YAML or a checkpoint.
        where: the file, then the path of keys; named in errors.
        from_checkpoint: whether the values come from a checkpoint, where retired keys are left
            out, also from nested dataclasses.

    Raises:
        InputError: unknown key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: must be a mapping of settings, not {_short(values)}.")
    if from_checkpoint:
        retired: tuple[str, ...] = getattr(cls, "RETIRED_KEYS", ())
        values = {name: value for name, value in values.items() if name not in retired}
    hints = _hints_of(cls, values, where)
    converted = {
        name: _convert(hints[name], value, f"{where}: {name}", from_checkpoint)
        for name, value in values.items()
    }
    try:
        return cls(**converted)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def check_types(cls: type, values: dict[str, Any], where: str) -> None:
    """Check names and types as :func:`build` does, but no value against another one.

    Args:
        cls: a dataclass.
        values: some of its settings.
        where: named in errors.

    Raises:
        InputError: unknown key, or a value of the wrong type.
    """
    hints = _hints_of(cls, values, where)
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            check_types(typing.cast(type, hints[name]), value, f"{where}: {name}")
        else:
            _convert(hints[name], value, f"{where}: {name}", from_checkpoint=False)


def _hints_of(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Type hints of the fields of a dataclass, after a check that every key is a field.

    Raises:
        InputError: unknown key.
    """
    known = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(str(key)[:60] for key in set(values) - known)
    if unknown:
        raise InputError(
            f"{where}: unknown key{'s' * (len(unknown) > 1)} "
            f"{', '.join(unknown[:MAX_NAMED_KEYS])}; known are {', '.join(sorted(known))}."
        )
    return typing.get_type_hints(cls)


def _short(value: Any) -> str:
    """A value for a message, cut: aliases in a small YAML file can expand to gigabytes."""
    return reprlib.repr(value)[:MAX_VALUE_CHARACTERS]


def _convert(hint: Any, value: Any, where: str, from_checkpoint: bool) -> Any:
    """Check a value against a type hint; convert lists to tuples and int to float where needed."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = next(a for a in arguments if a is not type(None))
        return _convert(inner, value, where, from_checkpoint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where, from_checkpoint)
    if origin is tuple:
        any_length = arguments[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or (
            not any_length and len(value) != len(arguments)
        ):
            raise InputError(
                f"{where}: must be a list of {'' if any_length else len(arguments)} values, "
                f"not {_short(value)}."
            )
        return tuple(_convert(arguments[0], item, where, from_checkpoint) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: must be a mapping, not {_short(value)}.")
        return {
            str(key): _convert(arguments[1], item, f"{where}.{key}", from_checkpoint)
            for key, item in value.items()
        }
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    """Check a value that is neither a list nor a mapping against its type."""
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 (no decimal point) as a string.
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
    """A dataclass as nested dicts and lists, for YAML and checkpoints; inverse of :func:`build`.

    Args:
        settings: a dataclass.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {key: plain(value) for key, value in dataclasses.asdict(settings).items()}
