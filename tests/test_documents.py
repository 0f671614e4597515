"""The documents: links lead to files, named functions and modules exist, documented flags too."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest
from code_figures import ROOMS, read_sources

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OTHER_TOOLS = {"pip", "venv", "pytest", "torch.distributed.run"}  # modules run by python -m


@pytest.fixture(scope="module")
def code() -> str:
    """The text of all code, for flags."""
    return "\n".join(source.text for source in read_sources(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if not link.startswith("http") and not (document.parent / link).exists()
    ]
    assert missing == []


def test_the_walks_name_functions_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:[a-z_0-9]+\.)+[A-Za-z_][\w.]*)`", text)
    names = [name for name in names if name.split(".")[0] in ROOMS]
    assert len(names) >= 20
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_modules_exist(document):
    if document.name == "CHANGELOG.md":
        return  # it names former commands too
    text = document.read_text(encoding="utf-8")
    for module in sorted(set(re.findall(r"python -m ([\w.]+)", text)) - OTHER_TOOLS):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_flags_exist(document, code):
    if document.name == "CHANGELOG.md":
        return  # it names former flags too
    text = document.read_text(encoding="utf-8")
    commands = re.findall(r"^.*python (?:-m )?[\w./]+.*(?:\\\n.*)*", text, re.M)
    flags = {flag for line in commands for flag in re.findall(r"(?<!\S)(--[a-z_]+)", line)}
    missing = [flag for flag in sorted(flags) if f'"{flag}"' not in code]
    assert set(missing) <= {"--nproc_per_node", "--upgrade"}, missing
