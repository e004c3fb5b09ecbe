"""`artkv report` on a run of the tiny world, and on folders without a model."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import artkv.cli as cli
import artkv.report.writing as writing
from artkv import load_config
from artkv.api import evaluate
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.attention import attention_of
from artkv.report.writing import ReportSettings, write_report
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.session import Session
from artkv.training.run import train
from tests.report.conftest import MakeRun, questions_about


@pytest.fixture(scope="module")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    """A run of the tiny world that answered its validation questions under all ablations."""
    output = tmp_path_factory.mktemp("report") / "run"
    config = load_config(tiny_world / "config.yaml", [f"run.output_dir={output}", "training.num_epochs=1"])
    train(config, None, one_process)
    evaluate(output, "val", config=config, world=one_process)
    return output


def data_of(page: Path, name: str) -> Any:
    """The JSON that the page's script reads, read from the file by itself."""
    (found,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text("utf-8"), re.S)
    return json.loads(found)


def test_a_trained_runs_report_has_its_hashes_curves_and_attention(
    trained: Path, tiny_world: Path, one_process: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(trained)]) == 0
    page = trained / "report.html"
    assert capsys.readouterr().out == f"{page}: {page.stat().st_size / 1e6:.1f} MB, open it in a browser\n"
    text = page.read_text(encoding="utf-8")
    checkpoint = open_checkpoint(trained)
    for value in (checkpoint.frozen_hash, checkpoint.checksums["adapter.safetensors"], checkpoint.path.name):
        assert value in text
    assert "Loss on answer tokens" in text
    assert str(tiny_world) not in text
    assert str(trained) not in text.replace(f"artkv compare {trained}", "")
    # The maps are the model's own.
    session = Session(checkpoint.config, one_process, ["val"]).load(checkpoint)
    cases = data_of(page, "attention-data")["cases"]
    assert len(cases) == min(12, session.questions["val"].table.num_paintings)
    seen = attention_of(session.model, session.questions["val"], [case["row"] for case in cases])
    for case, expected in zip(cases, seen, strict=True):
        for drawn, shares in zip(case["maps"], (expected.map_on, expected.map_off), strict=True):
            found = np.frombuffer(base64.b64decode(drawn["bytes"]), np.uint8).reshape(shares.shape)
            assert np.abs(found / 255 * shares.max() - shares).max() < shares.max() / 500  # half a byte


def _no_model(*_: object) -> None:
    raise UserError("model.blip2 = gone: no such folder; give one")


def test_where_the_model_cannot_be_loaded_the_report_says_what_is_missing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"model.blip2={tmp_path / 'gone'}"
    output = tmp_path / "report.html"
    assert cli.main(["report", str(trained), "--output", str(output), "--set", gone]) == 1
    assert re.search(r"gone.*; or give --attention 0, for a report without maps\n", capsys.readouterr().err)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(writing, "read_attention", _no_model)
        other = "evaluation.bootstrap_samples=60"  # which is not why
        assert cli.main(["report", str(trained), "--output", str(output), "--set", other]) == 0
    assert "no attention maps: " in capsys.readouterr().err
    text = output.read_text(encoding="utf-8")
    assert "There are no attention maps, for which the model is needed" in text
    assert re.search(r"<code>\S*artkv report \S+ --attention 12</code>", text)
    output.unlink()
    assert cli.main(["report", str(trained), "--output", str(output), "--set", gone, "--attention", "3"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not output.exists()


def test_maps_of_another_csv_file_than_was_answered_are_refused(trained: Path, tiny_world: Path) -> None:
    settings = ReportSettings(trained, attention=2, overrides=[f"dataset.val={tiny_world / 'train.csv'}"])
    with pytest.raises(UserError, match="is not the CSV file that was answered; give that one with --set dataset.val="):
        write_report(settings)


def test_wrong_input_is_one_message_and_leaves_no_file(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(ablations=[])
    assert cli.main(["report", str(run)]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"artkv: {run}: has no evaluation to report; make it with: ")
    assert not (run / "report.html").exists()
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: is no folder" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert cli.main(["report", str(run), "--output", str(tmp_path / "folder")]) == 1
    assert "folder: is a folder; give a file in it" in capsys.readouterr().err


def test_pictures_that_have_no_room_are_left_out_and_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(questions=questions_about(60))
    whole = write_report(ReportSettings(run, attention=0)).stat().st_size
    assert len(data_of(run / "report.html", "pictures")) == 60
    monkeypatch.setattr(writing, "MOST_BYTES", whole + writing._FRAME_BYTES - 140_000)
    page = write_report(ReportSettings(run, attention=0))
    held = len(data_of(page, "pictures"))
    assert 0 < held < 60
    text = page.read_text(encoding="utf-8")
    assert f"{held} pictures are in this file; {60 - held} are left out, so that it can be mailed" in text
    data = data_of(page, "data")
    shown = {data["texts"][row[2]] for row in data["rows"] if row[1] >= 0}
    telling = {data["texts"][row[2]] for row in data["rows"] if row[8]}
    assert len(shown) == held
    assert shown <= telling or telling <= shown
    assert page.stat().st_size < writing.MOST_BYTES


def test_pictures_can_be_kept_out(make_run: MakeRun) -> None:
    page = write_report(ReportSettings(make_run(), attention=0, pictures=0))
    assert data_of(page, "pictures") == []
    assert "0 pictures are in this file; 12 are left out, as was asked" in page.read_text(encoding="utf-8")


def test_pictures_that_are_gone_are_told_and_a_moved_folder_can_be_given(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "images").rename(tmp_path / "moved")
    page = write_report(ReportSettings(run, attention=0))
    assert "12 could not be read (picture painting_00000.jpg: no such file; put it back)" in page.read_text("utf-8")
    moved = [f"dataset.image_root={tmp_path / 'moved'}"]
    page = write_report(ReportSettings(run, attention=0, overrides=moved))
    assert len(data_of(page, "pictures")) == 12


def test_a_missing_comparison_and_a_control_are_told(make_run: MakeRun) -> None:
    run, control = make_run(), make_run("control", is_modulated=False, ablations=["on"])
    text = write_report(ReportSettings(run, [control], attention=0)).read_text("utf-8")
    assert re.search(r"Differences and verdicts are missing\.[^<]*<br><code>\S*artkv compare \S+run \S+control", text)
    text = write_report(ReportSettings(control, attention=0)).read_text("utf-8")
    assert "it has no prefix to judge" in text
    assert "Differences and verdicts" not in text


def test_answers_of_different_checkpoints_are_told(make_run: MakeRun) -> None:
    run = make_run()
    path = run / "eval" / "test-off" / "metrics.json"
    path.write_text(path.read_text("utf-8").replace("step_00000300", "step_00000200"), "utf-8")
    text = write_report(ReportSettings(run, attention=0)).read_text("utf-8")
    assert "The answers are of different checkpoints, step_00000200, step_00000300" in text


def test_bytes_that_are_no_utf8_do_not_stop_it(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a\udce9.png")
    run = make_run(questions=[("b.png", "Which style?", "baroque", "style")], with_pictures=False)
    for path in run.glob("eval/*/predictions.csv"):
        path.write_bytes(path.read_bytes().replace(b"b.png", b"a\xe9.png"))
    page = write_report(ReportSettings(run, attention=0))
    assert len(data_of(page, "pictures")) == 1
