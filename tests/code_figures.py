"""Measure the shape of the code: layers, sizes, docstrings.

    python tests/code_figures.py              # this checkout
    python tests/code_figures.py ROOT         # another one, such as a worktree of an earlier commit

Test files count for the longest file and the long lines, not for the rooms. CONTRIBUTING.md names
the limits.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# From the ground up: a room imports from rooms before it only. Scripts, benchmarks and examples
# import from all of them, examples from scripts too.
ROOMS = (
    "utils",
    "geometry",
    "pictures",
    "dataset",
    "synthesis",
    "model",
    "loss",
    "registration",
    "batch",
    "evaluation",
    "training",
    "review_page",
)
SHAPE = re.compile(r"\((?:\*?\w+|\.\.\.|\d+)(?:\s*[*/+]\s*\w+)?,[^()]*\)|\(\w+\)-shaped")
ARRAY_TYPES = re.compile(r"\b(ndarray|Tensor|Array)\b")
MAX_COLUMNS = 100
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


class Source(NamedTuple):
    """One Python file: its path relative to the root, its text and its syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """First folder of the path, or the name of a script."""
        return self.path.parts[0].removesuffix(".py")

    @property
    def n_lines(self) -> int:
        """Number of lines."""
        return len(self.text.splitlines())


class Function(NamedTuple):
    """A function or method; ``public`` when neither it nor what it is part of begins with ``_``."""

    source: Source
    node: ast.FunctionDef | ast.AsyncFunctionDef
    public: bool

    @property
    def n_lines(self) -> int:
        """Lines from its first decorator to its end, its docstring included."""
        first = min([self.node.lineno, *(each.lineno for each in self.node.decorator_list)])
        return (self.node.end_lineno or first) - first + 1

    @property
    def place(self) -> str:
        """``path:line name``, for messages."""
        return f"{self.source.path}:{self.node.lineno} {self.node.name}"

    @property
    def docstring(self) -> str:
        """Its docstring, "" without one."""
        return ast.get_docstring(self.node) or ""

    def parameters(self) -> dict[str, str]:
        """Name and annotation of every parameter but ``self`` and ``cls``."""
        spec = self.node.args
        every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
        return {
            each.arg: ast.unparse(each.annotation) if each.annotation else ""
            for each in every
            if each is not None and each.arg not in ("self", "cls")
        }

    def described_parameters(self) -> set[str]:
        """Names that the ``Args:`` section of the docstring describes."""
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", self.docstring, re.S | re.M)
        heads = re.findall(r"^ {4}(\*{0,2}\w[\w*, ]*):", section[1], re.M) if section else []
        inline = re.findall(r"[.;] (\w[\w, ]*): ", section[1]) if section else []
        return {name.strip(" *") for head in [*heads, *inline] for name in head.split(",")}

    def takes_arrays(self) -> bool:
        """Whether any parameter is an array or a tensor."""
        return any(ARRAY_TYPES.search(annotation) for annotation in self.parameters().values())

    def gives_shapes(self) -> bool:
        """Whether the docstring names a shape, such as (N, 2)."""
        return SHAPE.search(self.docstring) is not None


def read_sources(root: Path) -> list[Source]:
    """Every Python file that git tracks or would track below ``root``."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    sources = []
    for name in sorted(set(listed.stdout.split())):
        if (root / name).is_file():
            text = (root / name).read_text(encoding="utf-8")
            sources.append(Source(Path(name), text, ast.parse(text)))
    return sources


def functions_of(source: Source) -> Iterator[Function]:
    """All functions of a file, methods and nested functions among them."""

    def walk(node: ast.AST, public: bool) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                own = public and not child.name.startswith("_")
                yield Function(source, child, own)
                yield from walk(child, False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, public and not child.name.startswith("_"))
            else:
                yield from walk(child, public)

    yield from walk(source.tree, True)


def imported_modules(source: Source) -> Iterator[str]:
    """Dotted names of all modules that a file imports, inside functions too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rank_of(room: str, rooms: tuple[str, ...]) -> int:
    """Place of a room in the order; scripts and benchmarks come after the rooms, examples last."""
    if room == "examples":
        return len(rooms) + 1
    return rooms.index(room) if room in rooms else len(rooms)


def upward_imports(sources: list[Source], rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """One line for every import of a room or script that does not lie below the importing file."""
    known = {source.room for source in sources}
    found = []
    for source in sources:
        for module in imported_modules(source):
            target = module.split(".")[0]
            if target not in known or target == source.room:
                continue
            if rank_of(target, rooms) >= rank_of(source.room, rooms):
                found.append(f"{source.path} imports {module}")
    return found


def import_cycles(sources: list[Source]) -> list[list[str]]:
    """Groups of files that import each other, directly or by way of others (Tarjan, 1972)."""
    names = {".".join(source.path.with_suffix("").parts): source for source in sources}
    names = {name.removesuffix(".__init__"): source for name, source in names.items()}
    edges = {
        name: [module for module in _targets(source, names) if module != name]
        for name, source in names.items()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            start = stack.index(name)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return groups


def _targets(source: Source, names: dict[str, Source]) -> Iterator[str]:
    """Modules of this project that a file imports; of ``from package import module`` the module."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from [full] if full in names else [node.module] * (node.module in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)


def incomplete_args(function: Function) -> set[str]:
    """Parameters that an ``Args:`` section leaves out; none where there is no such section."""
    described = function.described_parameters()
    return set(function.parameters()) - described if described else set()


def figures(root: Path) -> dict[str, str]:
    """Every figure by its name, as text."""
    sources = read_sources(root)
    code = [source for source in sources if source.room != "tests"]
    functions = [function for source in code for function in functions_of(source)]
    sizes: dict[str, int] = {}
    for source in code:
        room = source.room if len(source.path.parts) > 1 else "scripts at the top"
        sizes[room] = sizes.get(room, 0) + source.n_lines
    largest = max(sizes, key=lambda room: sizes[room])
    longest_file = max(sources, key=lambda source: source.n_lines)
    longest_function = max(functions, key=lambda function: function.n_lines)
    long_lines = [
        f"{source.path}:{number}"
        for source in sources
        for number, line in enumerate(source.text.splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]
    public = [function for function in functions if function.public]
    arrays = [function for function in public if function.takes_arrays()]
    shaped = sum(function.gives_shapes() for function in arrays)
    with_args = [function for function in functions if function.described_parameters()]
    return {
        "upward imports": str(len(upward_imports(code))),
        "import cycles": str(len(import_cycles(code))),
        "lines of code": str(sum(sizes.values())),
        "largest room": f"{largest}, {sizes[largest] / sum(sizes.values()):.0%}",
        "files in utils/": str(len([each for each in code if each.room == "utils"])),
        "longest file": f"{longest_file.path}, {longest_file.n_lines} lines",
        "longest function": f"{longest_function.place}, {longest_function.n_lines} lines",
        f"lines over {MAX_COLUMNS} columns": str(len(long_lines)),
        "public functions with a docstring": _share([bool(each.docstring) for each in public]),
        "of those with array arguments, giving shapes": f"{shaped} of {len(arrays)}, "
        f"{shaped / max(len(arrays), 1):.0%}",
        "partial Args: sections": f"{sum(bool(incomplete_args(each)) for each in with_args)} of "
        f"{len(with_args)}",
        **{
            f"lines of {name}": str(len((root / name).read_text(encoding="utf-8").splitlines()))
            for name in ("train_multimodal_e2e.py", "train_loftr_v3.py", "README.md")
        },
    }


def _share(values: list[bool]) -> str:
    return f"{sum(values)} of {len(values)}, {sum(values) / max(len(values), 1):.0%}"


def main() -> None:
    """Print the figures, or with --list every place that is counted by one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--list", action="store_true", help="name the places behind the figures")
    parser.add_argument("--only", default="", help="with --list: paths that begin with this")
    args = parser.parse_args()
    if not args.list:
        for name, value in figures(args.root).items():
            print(f"{name}: {value}")
        return
    for line in places(args.root):
        if line.split(": ", 1)[1].startswith(args.only):
            print(line)


def places(root: Path) -> Iterator[str]:
    """Every place that a limit or a rule does not hold at: ``kind: place``."""
    sources = read_sources(root)
    code = [source for source in sources if source.room != "tests"]
    yield from (f"upward import: {line}" for line in upward_imports(code))
    for source in sources:
        if source.n_lines > MAX_FILE_LINES:
            yield f"long file: {source.path} {source.n_lines}"
        for number, line in enumerate(source.text.splitlines(), start=1):
            if len(line) > MAX_COLUMNS:
                yield f"long line: {source.path}:{number}"
        for function in functions_of(source):
            if function.n_lines > MAX_FUNCTION_LINES:
                yield f"long function: {function.place} {function.n_lines}"
            if source.room == "tests":
                continue
            if incomplete_args(function):
                yield f"partial Args: {function.place} lacks {sorted(incomplete_args(function))}"
            if function.public and not function.docstring:
                yield f"no docstring: {function.place}"
            elif function.public and function.takes_arrays() and not function.gives_shapes():
                yield f"no shapes: {function.place}"


if __name__ == "__main__":
    main()
