"""Config files: `base:` keys, merging, and settings of earlier versions in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from utils.config import build, merge_settings, read_config, read_yaml, to_plain
from utils.errors import InputError


def write(folder: Path, name: str, text: str) -> Path:
    """Write a config file and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_merge_replaces_values_level_by_level() -> None:
    """Nested mappings are merged, lists and scalars replaced; the inputs stay as they are."""
    base = {"a": {"x": 1, "y": {"z": [1, 2]}}, "b": 2}
    change = {"a": {"y": {"z": [3], "w": 4}}, "c": None}

    assert merge_settings(base, change) == {
        "a": {"x": 1, "y": {"z": [3], "w": 4}},
        "b": 2,
        "c": None,
    }
    assert base == {"a": {"x": 1, "y": {"z": [1, 2]}}, "b": 2}


def test_a_value_replaces_a_mapping_and_a_mapping_a_value() -> None:
    """Where only one side is a mapping, the change wins as a whole."""
    assert merge_settings({"a": {"x": 1}}, {"a": None}) == {"a": None}
    assert merge_settings({"a": 1}, {"a": {"x": 1}}) == {"a": {"x": 1}}


def test_config_without_base_is_the_plain_mapping(tmp_path: Path) -> None:
    """No `base:` key: the same as :func:`read_yaml`."""
    path = write(tmp_path, "plain.yaml", "train: {epochs: 3}\nseed: 1\n")
    assert read_config(path) == read_yaml(path) == {"train": {"epochs": 3}, "seed": 1}


def test_config_is_merged_over_its_base(tmp_path: Path) -> None:
    """The base is found relative to the file that refers to it, over two levels."""
    write(tmp_path, "shared/first.yaml", "train: {epochs: 3, lr: 0.1}\nview: {scale: [1, 2]}\n")
    write(tmp_path, "shared/second.yaml", "base: first.yaml\ntrain: {epochs: 5}\nseed: 7\n")
    path = write(tmp_path, "third.yaml", "base: shared/second.yaml\nview: {scale: [3, 4]}\n")

    assert read_config(path) == {
        "train": {"epochs": 5, "lr": 0.1},
        "view": {"scale": [3, 4]},
        "seed": 7,
    }


def test_missing_base_is_named_with_the_remedy(tmp_path: Path) -> None:
    """The message names the config, the missing base and what to do."""
    path = write(tmp_path, "mine.yaml", "base: absent.yaml\n")
    with pytest.raises(InputError, match=r"mine\.yaml: base: no such .*absent\.yaml.*relative to"):
        read_config(path)


def test_mapping_under_base_is_a_section(tmp_path: Path) -> None:
    """The configs of LoFTR have a stage of this name."""
    path = write(tmp_path, "mine.yaml", "base: {train: {epochs: 3}}\n")
    assert read_config(path) == {"base": {"train": {"epochs": 3}}}


@pytest.mark.parametrize("value", ["3", "[a.yaml]"])
def test_base_must_be_a_file_name(tmp_path: Path, value: str) -> None:
    """A number or a list is refused."""
    path = write(tmp_path, "mine.yaml", f"base: {value}\n")
    with pytest.raises(InputError, match=r"mine\.yaml: base: must be the name"):
        read_config(path)


def test_cycle_of_bases_is_refused(tmp_path: Path) -> None:
    """Two configs that are each other's base; the message names both."""
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    write(tmp_path, "b.yaml", "base: ./a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml -> .*b\.yaml -> .*a\.yaml: .*remove one"):
        read_config(tmp_path / "a.yaml")


def test_config_cannot_be_its_own_base(tmp_path: Path) -> None:
    """A cycle of one file."""
    path = write(tmp_path, "a.yaml", "base: a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml -> .*a\.yaml: .*remove one"):
        read_config(path)


def test_chain_of_four_bases_is_the_longest(tmp_path: Path) -> None:
    """Four bases in a row are read, a fifth is refused with all files named."""
    write(tmp_path, "0.yaml", "seed: 1\n")
    for number in range(1, 6):
        write(tmp_path, f"{number}.yaml", f"base: {number - 1}.yaml\n")

    assert read_config(tmp_path / "4.yaml") == {"seed": 1}
    with pytest.raises(InputError, match=r"5\.yaml -> .*0\.yaml: more than 4"):
        read_config(tmp_path / "5.yaml")


@dataclass(frozen=True)
class _Inner:
    """Settings with one key of an earlier version."""

    RETIRED_KEYS: ClassVar[tuple[str, ...]] = ("old_rate",)
    rate: float = 1.0


@dataclass(frozen=True)
class _Outer:
    """Settings that contain others, directly and by name."""

    RETIRED_KEYS: ClassVar[tuple[str, ...]] = ("old_seed",)
    inner: _Inner = field(default_factory=_Inner)
    named: dict[str, _Inner] = field(default_factory=dict)
    optional: _Inner | None = None
    seed: int = 0


WITH_RETIRED_KEYS = {
    "seed": 3,
    "old_seed": 4,
    "inner": {"rate": 2, "old_rate": 5},
    "named": {"a": {"old_rate": 5}},
    "optional": {"old_rate": 5, "rate": 0.5},
}


def test_retired_keys_of_a_checkpoint_are_left_out() -> None:
    """Old checkpoints load, also with retired keys of nested settings; nothing is modified."""
    before = {**WITH_RETIRED_KEYS}
    built = build(_Outer, WITH_RETIRED_KEYS, "run.pth", from_checkpoint=True)

    assert built == _Outer(_Inner(2.0), {"a": _Inner()}, _Inner(0.5), 3)
    assert before == WITH_RETIRED_KEYS
    assert "RETIRED_KEYS" not in to_plain(built)


@pytest.mark.parametrize(
    "values", [{"old_seed": 4}, {"inner": {"old_rate": 5}}, {"named": {"a": {"old_rate": 5}}}]
)
def test_retired_keys_of_a_config_file_are_unknown(values: dict[str, object]) -> None:
    """In a YAML file a retired key is an error that names it."""
    with pytest.raises(InputError, match=r"run\.yaml: .*unknown key old_"):
        build(_Outer, values, "run.yaml")


def test_unknown_keys_of_a_checkpoint_stay_an_error() -> None:
    """Only the listed keys are left out."""
    with pytest.raises(InputError, match=r"unknown key stray"):
        build(_Outer, {"stray": 1}, "run.pth", from_checkpoint=True)


def test_second_release_config_differs_from_the_first_where_intended() -> None:
    """The second half of the release training: shorter, lower rate, full view ranges at once."""
    configs = Path(__file__).parents[1] / "configs"
    first = read_config(configs / "superretina_release.yaml")
    second = read_config(configs / "superretina_release_second.yaml")

    change = {"view": {"ramp_epochs": 0}, "train": {"epochs": 8, "lr": 0.001}}
    assert second == merge_settings(first, change)
    assert (first["view"]["ramp_epochs"], first["train"]["epochs"]) == (5, 16)
    assert first["train"]["lr"] == 0.0015


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    """Otherwise the last one would replace the first, for example a base file by a stage."""
    path = tmp_path / "twice.yaml"
    path.write_text("base: other.yaml\nseed: 1\nbase: {train: {epochs: 1}}\n", encoding="utf-8")
    with pytest.raises(InputError, match="twice.yaml.*'base' occurs twice"):
        read_yaml(path)
    path.write_text("train: {lr: 1, lr: 2}\n", encoding="utf-8")
    with pytest.raises(InputError, match="'lr' occurs twice"):
        read_yaml(path)
