"""Every module has a test file of its name, or CONTRIBUTING.md says where it is tested."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_module_has_a_mirror_or_a_place_where_it_is_tested() -> None:
    modules = {
        path.relative_to(ROOT / "artkv").as_posix()
        for path in (ROOT / "artkv").rglob("*.py")
        if not path.name.startswith("__")
    }
    mirrored = {
        module
        for module in modules
        if (ROOT / "tests" / module).with_name(f"test_{module.rsplit('/', 1)[-1]}").is_file()
    }
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("| module of `artkv/` |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", table, re.M)
    told = {module: tested for named, tested in rows for module in re.findall(r"`([^`]+\.py)`", named)}
    assert told.keys() == modules - mirrored
    for tested in told.values():
        assert all((ROOT / path).is_file() for path in re.findall(r"`(tests/[^`]+)`", tested)), tested
