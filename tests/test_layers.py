"""The rooms of the project: imports go downwards, there are no cycles, and sizes stay small."""

from __future__ import annotations

from pathlib import Path

import pytest
from code_figures import (
    MAX_COLUMNS,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    ROOMS,
    Source,
    functions_of,
    import_cycles,
    read_sources,
    upward_imports,
)

ROOT = Path(__file__).resolve().parents[1]
MAX_SCRIPT_LINES = 200
MAX_ROOM_SHARE = 0.2


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources(ROOT)


@pytest.fixture(scope="module")
def code(sources) -> list[Source]:
    """Everything but the tests."""
    return [source for source in sources if source.room != "tests"]


def test_rooms_import_from_lower_rooms_only(code):
    assert upward_imports(code) == []


def test_no_files_import_each_other(code):
    assert import_cycles(code) == []


def test_every_folder_with_code_is_a_known_room(code):
    folders = {source.room for source in code if len(source.path.parts) > 1}
    assert folders == {*ROOMS, "benchmarks", "examples"}


def test_no_room_holds_more_than_a_fifth_of_the_code(code):
    total = sum(source.n_lines for source in code)
    for room in ROOMS:
        lines = sum(source.n_lines for source in code if source.room == room)
        assert lines <= MAX_ROOM_SHARE * total, f"{room}: {lines} of {total} lines"


def test_files_and_functions_are_short(sources, code):
    long_files = [source.path for source in sources if source.n_lines > MAX_FILE_LINES]
    assert long_files == []
    long_functions = [
        function.place
        for source in code
        for function in functions_of(source)
        if function.n_lines > MAX_FUNCTION_LINES
    ]
    assert long_functions == []


def test_lines_are_short(sources):
    long_lines = [
        f"{source.path}:{number}"
        for source in sources
        for number, line in enumerate(source.text.splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]
    assert long_lines == []


@pytest.mark.parametrize("script", ["train_multimodal_e2e.py", "train_loftr_v3.py"])
def test_training_scripts_are_short(script):
    assert len((ROOT / script).read_text().splitlines()) < MAX_SCRIPT_LINES


def write(root: Path, files: dict[str, str]) -> list[Source]:
    """A small repository with these files."""
    import subprocess

    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return read_sources(root)


def test_an_upward_import_is_found(tmp_path):
    files = {
        "utils/a.py": "def f():\n    from model.net import g\n",
        "model/net.py": "import utils.a\n",
    }
    assert upward_imports(write(tmp_path, files)) == ["utils/a.py imports model.net"]


def test_an_import_of_a_script_is_upward(tmp_path):
    files = {"register.py": "", "evaluation/methods/own.py": "from register import Registrar\n"}
    found = upward_imports(write(tmp_path, files))
    assert found == ["evaluation/methods/own.py imports register"]


def test_a_cycle_is_found(tmp_path):
    files = {
        "utils/a.py": "from utils import b\n",
        "utils/b.py": "from utils.c import x\n",
        "utils/c.py": "import utils.a\n",
        "utils/d.py": "import utils.a\n",
    }
    assert import_cycles(write(tmp_path, files)) == [["utils.a", "utils.b", "utils.c"]]
