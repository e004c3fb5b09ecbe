"""How long signatures, functions and modules of artkv may be, and that no modules import one another in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_layering import imported_names

ROOT = Path(__file__).resolve().parents[1] / "artkv"
MAX_PARAMETERS = 7
MAX_LINES_OF_A_FUNCTION = 80
MAX_LINES_OF_A_MODULE = 400
# What argparse hands over comes one by one, and so does what a kernel gets.
ANY_PARAMETERS = {"cli.py", "models/opt/tree_kernels.py"}


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Every function of a module, nested ones too, and whether a class holds it."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, isinstance(node, ast.ClassDef)


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, in_class: bool) -> int:
    """Those that a caller can give: *names and **names count as one each, self, cls and `**_` not.

    `**_` is what a library hands to a function that does not look at it.
    """
    arguments = function.args
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
    if in_class and names[:1] in (["self"], ["cls"]):
        names = names[1:]
    rest = [a for a in (arguments.vararg, arguments.kwarg) if a is not None and a.arg != "_"]
    return len(names) + len(arguments.kwonlyargs) + len(rest)


def oversized(relative: str, source: str) -> list[str]:
    """What is too long in `source`, at `artkv/{relative}`; a line of text each."""
    found = []
    lines = len(source.splitlines())
    if lines > MAX_LINES_OF_A_MODULE:
        found.append(f"{relative}: {lines} lines, more than {MAX_LINES_OF_A_MODULE}; split it by matter")
    for function, in_class in functions(ast.parse(source)):
        where = f"{relative}:{function.lineno}: {function.name}"
        parameters = num_parameters(function, in_class)
        if parameters > MAX_PARAMETERS and relative not in ANY_PARAMETERS:
            found.append(f"{where} takes {parameters} parameters, more than {MAX_PARAMETERS}; make a record of them")
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > MAX_LINES_OF_A_FUNCTION:
            found.append(f"{where} has {lines} lines, more than {MAX_LINES_OF_A_FUNCTION}")
    return found


class _WithoutTypeChecking(ast.NodeTransformer):
    """Drops what stands below `if TYPE_CHECKING:`, which is imported by no one at run time."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return node.orelse or ast.Pass()
        return node


def import_circle(sources: dict[str, str]) -> list[str]:
    """Modules of `sources` (dotted name -> source) that import one another in a circle, or nothing.

    Imports inside functions count. That a module imports its package does not: each does, by having its name.
    """
    graph = {}
    for module, source in sources.items():
        is_package = any(other.startswith(f"{module}.") for other in sources)
        package = module if is_package else module.rpartition(".")[0]
        runtime = ast.unparse(_WithoutTypeChecking().visit(ast.parse(source)))
        targets = set()
        for _, name in imported_names(runtime, package):
            # `a.b.c` is the module `a.b.c`, or what `a.b` holds.
            target = name if name in sources else name.rpartition(".")[0]
            if target in sources and target != module:
                targets.add(target)
        graph[module] = targets
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def artkv_sources() -> dict[str, str]:
    """The source of each file of artkv by its path below it."""
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 10
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def module_name(relative: str) -> str:
    return ".".join(["artkv", *relative.removesuffix(".py").split("/")]).removesuffix(".__init__")


def test_signatures_functions_and_modules_are_short() -> None:
    assert [line for relative, source in artkv_sources().items() for line in oversized(relative, source)] == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert import_circle({module_name(relative): source for relative, source in artkv_sources().items()}) == []


EIGHT = ", ".join(f"p{number}" for number in range(8))
SEVEN = EIGHT.removesuffix(", p7")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"def fit({EIGHT}):\n    pass", "fit takes 8 parameters"),
        (f"async def fit({EIGHT}):\n    pass", "fit takes 8 parameters"),
        (f"def fit({SEVEN}, *, last):\n    pass", "fit takes 8 parameters"),
        (f"def fit({SEVEN}, /, *others):\n    pass", "fit takes 8 parameters"),
        (f"def fit({SEVEN}, **others):\n    pass", "fit takes 8 parameters"),
        (f"def fit(self, {SEVEN}):\n    pass", "fit takes 8 parameters"),  # of no class
        (f"class Run:\n    def fit(self, {EIGHT}):\n        pass", "fit takes 8 parameters"),
        (f"def outer():\n    def fit({EIGHT}):\n        pass", "fit takes 8 parameters"),
        ("def fit():\n" + "    pass\n" * 80, "fit has 81 lines"),
        ("class Run:\n    def fit(self):\n" + "        pass\n" * 80, "fit has 81 lines"),
        ("pass\n" * 401, "401 lines, more than 400"),
    ],
)
def test_checker_finds_what_is_too_long(source: str, message: str) -> None:
    found = oversized("training/loop.py", source)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("training/loop.py", f"def fit({SEVEN}):\n" + "    pass\n" * 79),
        ("training/loop.py", f"class Run:\n    def fit(self, {SEVEN}):\n        pass"),
        ("training/loop.py", f"class Run:\n    @classmethod\n    def of(cls, {SEVEN}):\n        pass"),
        ("training/loop.py", f"def attend({SEVEN}, **_):\n    pass"),
        ("training/loop.py", "pass\n" * 400),
        ("cli.py", f"def train({EIGHT}):\n    pass"),
    ],
)
def test_checker_allows_the_most(relative: str, source: str) -> None:
    assert oversized(relative, source) == []


@pytest.mark.parametrize(
    "second",
    [
        "import artkv.one",
        "from artkv import one",
        "from artkv.one import One",
        "from . import one",
        "def later():\n    from artkv.one import One",
        "if True:\n    import artkv.one",
    ],
)
def test_checker_finds_circles(second: str) -> None:
    sources = {"artkv": "", "artkv.one": "from artkv.two import Two", "artkv.two": second}
    assert set(import_circle(sources)) == {"artkv.one", "artkv.two"}


def test_checker_finds_a_circle_through_a_package() -> None:
    sources = {"artkv.part": "from artkv.part.one import One", "artkv.part.one": "from artkv.part import Two"}
    assert set(import_circle(sources)) == {"artkv.part", "artkv.part.one"}


@pytest.mark.parametrize(
    "second",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from artkv.one import One",
        "from artkv.three import Three",
        "import os",
        'text = "import artkv.one"',
    ],
)
def test_checker_allows_imports_in_one_direction(second: str) -> None:
    sources = {"artkv": "", "artkv.one": "from artkv.two import Two", "artkv.two": second, "artkv.three": ""}
    assert import_circle(sources) == []
