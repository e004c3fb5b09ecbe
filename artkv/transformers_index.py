"""transformers' index of its models, kept from one process to the next.

As it is imported transformers reads all of its 2,200 model files, twice, to learn which name is in which file. That is
some 0.8 of the five seconds that a command's imports take, and nearly half of all files that it opens, on each rank; on
a file system that a cluster shares it may be the better part of a start. What is found stays the same until another
transformers is installed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from artkv.config.paths import user_memory
from artkv.errors import UserError
from artkv.files import write_if_possible
from artkv.reading import parse_json, read_regular

_MODULE, _FUNCTION = "transformers.utils.import_utils", "define_import_structure"

# What transformers makes of a folder: for the libraries that are needed, which module has which names.
Index = dict[frozenset[str], dict[str, set[str]]]


@contextmanager
def kept_index() -> Iterator[None]:
    """Around the first import of transformers: what it would read all its model files for comes from the user's cache.

    The file is written where it is missing or of another installation. It is that of a folder which pip, uv or conda
    installed into (`RECORD` says when); a checkout, in which somebody may be working, and a transformers that is made
    in another way are read as ever. Nothing is changed in transformers after the block.
    """
    if "transformers" in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.restore()


class _Finder(MetaPathFinder):
    """Finds one module as Python does, and replaces a function of it before anybody can import that from there."""

    def __init__(self) -> None:
        self._replaced: tuple[ModuleType, Any] | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _MODULE else None
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def execute_and_replace(module: ModuleType) -> None:
                del loader.exec_module  # the loader's own again
                execute(module)
                self._replace(module)

            loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec

    def _replace(self, module: ModuleType) -> None:
        original = getattr(module, _FUNCTION, None)
        if original is not None and module.__file__ is not None:
            self._replaced = (module, original)
            setattr(module, _FUNCTION, _looked_up(original, Path(module.__file__).parents[1] / "models"))

    def restore(self) -> None:
        if self._replaced is not None:
            module, original = self._replaced
            setattr(module, _FUNCTION, original)


def _looked_up(define: Any, models: Path) -> Any:
    """`define`, transformers' function, which for the folder of all models looks into a file."""
    found: list[Index] = []

    def define_import_structure(module_path: str | Path, prefix: str | None = None) -> Index:
        if Path(module_path) not in (models, models / "__init__.py"):
            return define(module_path, prefix)  # type: ignore[no-any-return]
        if not found:
            found.append(_kept(define, models))
        return {
            libraries: {name if prefix is None else f"{prefix}.{name}": set(names) for name, names in modules.items()}
            for libraries, modules in found[0].items()
        }

    return define_import_structure


def _kept(define: Any, models: Path) -> Index:
    """The index of the folder, from its file if that is of this installation, else as transformers makes it."""
    records = sorted(models.parents[1].glob("transformers-*.dist-info/RECORD"))
    try:
        file = user_memory() / "transformers_index" / f"{hashlib.sha256(bytes(models)).hexdigest()[:16]}.json"
        key = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in [*records, models]]
    except (UserError, OSError):  # nobody's home, or what is being installed anew
        records = []
    if not records:
        return define(models)  # type: ignore[no-any-return]
    try:
        kept = parse_json(read_regular(file))
        if kept["key"] == key:
            return _from_json(kept["index"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it cannot be read
    index: Index = define(models)
    write_if_possible(file, json.dumps({"key": key, "index": _to_json(index)}))
    return index


def _to_json(index: Index) -> list[Any]:
    return [
        [sorted(libraries), {name: sorted(names) for name, names in modules.items()}]
        for libraries, modules in index.items()
    ]


def _from_json(entries: list[Any]) -> Index:
    return {
        frozenset(libraries): {name: set(names) for name, names in modules.items()} for libraries, modules in entries
    }
