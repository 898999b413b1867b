"""No import circles, no long argument lists, Ray in one package: of all of edm_ray, hidden imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edm_ray"
MOST_PARAMETERS = 8


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module -> the modules of edm_ray that it imports anywhere: also inside functions and under TYPE_CHECKING.

    The face, edm_ray/__init__.py, is left out: it names its homes in strings and for type checkers.
    """
    graph = grimp.build_graph("edm_ray", exclude_type_checking_imports=False, cache_dir=None)
    found = {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}
    del found["edm_ray"]
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that all reach one another (Tarjan)."""
    numbers: dict[str, int] = {}
    lows: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lows[name] = len(numbers)
        stack.append(name)
        for other in imports[name]:
            if other not in numbers:
                visit(other)
            if other in stack:
                lows[name] = min(lows[name], lows[other])
        if lows[name] == numbers[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in imports:
        if name not in numbers:
            visit(name)
    return found


def test_the_search_for_circles_finds_one() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_imports_inside_functions_and_for_type_checkers_are_counted(imports) -> None:
    """So that the absence of circles is not the blindness of the graph."""
    assert "edm_ray.distributed.session" in imports["edm_ray.distributed.executor"]  # inside a method
    graph = grimp.build_graph("edm_ray", exclude_type_checking_imports=False, cache_dir=None)
    assert "edm_ray.tasks.train" in graph.find_modules_directly_imported_by("edm_ray")  # under TYPE_CHECKING


def test_nothing_inside_imports_the_face(imports) -> None:
    """The one exception below may then be left out of the search: the face imports, and nobody imports it."""
    assert not [name for name, others in imports.items() if "edm_ray" in others]


def test_there_are_no_circles_of_imports(imports) -> None:
    assert circles(imports) == []


def functions(tree: ast.AST, inside: str = "", method: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(qualified name, parameters without self and cls) of each function; ``*args`` and ``**kwargs`` count one each."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names = names[1:] if method and names[:1] in (["self"], ["cls"]) else names
            names += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
            if not any(ast.unparse(each) == "triton.jit" for each in node.decorator_list):
                yield inside + node.name, names
            yield from functions(node, f"{inside}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{inside}{node.name}.", method=True)
        else:
            yield from functions(node, inside, method)


def test_the_count_of_parameters_is_right() -> None:
    text = "class A:\n    def f(self, a, /, b, *c, d, **e):\n        def g(self, x): pass\n"
    assert dict(functions(ast.parse(text))) == {"A.f": ["a", "b", "d", "c", "e"], "A.f.g": ["self", "x"]}


def test_no_function_takes_more_than_eight_parameters() -> None:
    """Constructors too, those that a dataclass writes excepted, and kernels, which take numbers only. A longer list is
    an object that has no name yet."""
    long = [
        f"{path.relative_to(ROOT)}: {name}({', '.join(names)})"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, names in functions(ast.parse(path.read_text()))
        if len(names) > MOST_PARAMETERS
    ]
    assert not long, "\n".join(long)


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


def test_ray_is_imported_in_distributed_only() -> None:
    """Its private names are in one file of it: tests/distributed/test_ray_private.py."""
    with_ray = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "ray" in imported(path)}
    assert "distributed/pool.py" in with_ray
    assert not [name for name in with_ray if not name.startswith("distributed/")]
