"""Docstrings: they exist, describe all arguments or none, and give the shapes of arrays."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from code_figures import Function, Source, functions_of, incomplete_args, read_sources

ROOT = Path(__file__).resolve().parents[1]
MIN_SHARE_WITH_SHAPES = 0.8


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    """All functions outside of the tests."""
    sources = [source for source in read_sources(ROOT) if source.room != "tests"]
    return [function for source in sources for function in functions_of(source)]


def test_public_functions_have_docstrings(functions):
    assert [each.place for each in functions if each.public and not each.docstring] == []


def test_args_sections_are_complete(functions):
    partial = {each.place: incomplete_args(each) for each in functions if incomplete_args(each)}
    assert partial == {}


def test_shapes_of_arrays_are_given(functions):
    arrays = [each for each in functions if each.public and each.takes_arrays()]
    without = [each.place for each in arrays if not each.gives_shapes()]
    assert 1 - len(without) / len(arrays) >= MIN_SHARE_WITH_SHAPES, "\n".join(without)


def function_of(text: str) -> Function:
    """The first function of a piece of code."""
    return next(functions_of(Source(Path("room/file.py"), text, ast.parse(text))))


def test_a_missing_argument_is_found():
    text = '''def f(points: np.ndarray, size: int, *, mode: str) -> None:
    """Do.

    Args:
        points, size: (N, 2) pixels, and a side.

    Returns:
        mode: not an argument.
    """
'''
    function = function_of(text)
    assert incomplete_args(function) == {"mode"}
    assert function.takes_arrays() and function.gives_shapes()


@pytest.mark.parametrize(
    ("sentence", "has_shape"),
    [
        ("Points (N, 2) in pixels.", True),
        ("An image (H, W[, 3]).", True),
        ("Indices (K,) of rows.", True),
        ("A map (1, 1, H, W).", True),
        ("A matrix (see the package).", False),
        ("As in the paper (Liu et al.).", False),
    ],
)
def test_shapes_are_recognised(sentence, has_shape):
    text = f'def f(x: torch.Tensor) -> None:\n    """{sentence}"""\n'
    assert function_of(text).gives_shapes() == has_shape
