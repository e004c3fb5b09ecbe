"""The process of one row of rows.py: calls the row's function, and says what became of it."""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from artkv.heavy_imports import heavy_imports


def main(spec_path: str, figures_path: str) -> None:
    """Writes `status` and what else the function's figures are; ends the process."""
    spec, path = json.loads(Path(spec_path).read_text(encoding="utf-8")), Path(figures_path)
    status, code = "measured", 0
    try:
        module, function = spec["target"].split(":")
        with heavy_imports():
            call = getattr(importlib.import_module(module), function)
        call(path, **spec["arguments"])
    except BaseException as error:
        traceback.print_exc()
        status, code = status_of(error, spec["may_be_refused"]), 1
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**found, "status": status}), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # loaders' threads and DeepSpeed's may hang at a normal exit


def status_of(error: BaseException, may_be_refused: bool) -> str:
    """In a line."""
    from pydantic import ValidationError

    from artkv.errors import UserError

    text = " ".join(str(error).split())[:300]
    if may_be_refused and isinstance(error, (UserError, ValidationError)):
        return f"skipped: refused: {text[:150]}"
    if "out of memory" in text.lower():
        return "out of memory"
    return f"failed: {type(error).__name__}: {text}"


if __name__ == "__main__":
    main(*sys.argv[1:])
