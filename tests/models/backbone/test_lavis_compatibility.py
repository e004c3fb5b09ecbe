"""What importing LAVIS leaves behind, which is nothing, and what is said where it cannot be imported."""

import importlib.util
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import transformers.modeling_utils

from artkv.errors import UserError
from artkv.models.backbone import lavis_compatibility
from artkv.models.backbone.lavis_compatibility import import_lavis

# `functools.cache` keeps what it returned in this process.
import_anew = import_lavis.__wrapped__


def patched_names() -> dict[str, object]:
    """What `transformers.modeling_utils` and `PreTrainedModel` hold, and which modules of LAVIS are there."""
    module = transformers.modeling_utils
    held = {**vars(module), **{f"PreTrainedModel.{k}": v for k, v in vars(module.PreTrainedModel).items()}}
    return held | {name: loaded for name, loaded in sys.modules.items() if name.split(".")[0] == "lavis"}


def test_neither_artkv_nor_a_backend_leaves_a_patch(tiny_world: Path) -> None:
    """In a process of its own, in which nothing was imported before."""
    script = """
        import sys
        import transformers.modeling_utils as module

        def patched_names():
            held = {**vars(module), **{f"PreTrainedModel.{k}": v for k, v in vars(module.PreTrainedModel).items()}}
            return held | {name: m for name, m in sys.modules.items() if name.split(".")[0] == "lavis"}

        before = patched_names()
        import artkv, artkv.cli
        for backend in ("transformers", "lavis"):
            config = artkv.load_config(sys.argv[1], [f"model.backend={backend}"])
            model = artkv.load_model(config)
            answer = model.ask(sys.argv[2], "What is it?")
            after = patched_names()
            assert after.keys() == before.keys(), after.keys() ^ before.keys()
            assert all(after[name] is before[name] for name in before)
            print(backend, type(model.model.backbone.qformer).__mro__[1].__module__)
        """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tiny_world / "config.yaml", tiny_world / "images" / "val0.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "lavis lavis.models.blip2_models.Qformer"
    assert "Warning" not in result.stderr


def test_lavis_itself_is_not_modified() -> None:
    modules = import_lavis()
    base = modules.qformer.BertModel
    assert modules.QFormer.__bases__ == (base,)
    for name in ("get_head_mask", "invert_attention_mask"):
        assert not hasattr(base, name)


def test_a_lavis_that_was_imported_before_stays() -> None:
    already = types.ModuleType("lavis")
    already.__spec__ = importlib.util.find_spec("lavis")
    sys.modules["lavis"] = already
    try:
        before = patched_names()
        assert import_anew().eva_vit.VisionTransformer
        assert patched_names() == before
    finally:
        del sys.modules["lavis"]


def test_without_lavis_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"is not installed; pip install --no-deps salesforce-lavis==1\.0\.2"):
        import_anew()


def test_a_lavis_that_cannot_be_imported_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lavis" / "models").mkdir(parents=True)
    (tmp_path / "lavis" / "__init__.py").touch()
    (tmp_path / "lavis" / "models" / "eva_vit.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    before = patched_names()
    with pytest.raises(UserError, match=r"cannot be imported \(No module named 'no_such_library'\)"):
        import_anew()
    assert patched_names() == before
    assert lavis_compatibility.REMEDY.startswith("pip install --no-deps")
