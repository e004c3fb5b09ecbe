"""Reading a run's folder: what is found in it, and one message for what is not."""

import json
import shutil
from pathlib import Path

import pytest

from artkv.config import dump_config, load_config, override_config
from artkv.errors import UserError
from artkv.report.evidence import read_evidence
from tests.report.conftest import MakeRun, answer, questions_about, write_evaluation


def test_everything_in_the_folder_is_found(make_run: MakeRun) -> None:
    run, control = make_run(), make_run("control", is_modulated=False, ablations=["on", "off"])
    evidence = read_evidence(run, [control])
    assert evidence.has_prefix
    assert evidence.split == "test"
    assert [one.label for one in evidence.evaluations] == [
        "prefix on", "prefix off", "shuffled", "question only", "control",
    ]  # fmt: skip
    first = questions_about(12)[0]
    for name, one in zip(["on", "off", "shuffled", "on-blank", "off"], evidence.evaluations, strict=True):
        assert one.predictions.columns["prediction"][0] == answer(first, name)
    assert (len(evidence.training), len(evidence.validations)) == (30, 2)
    assert evidence.environment["cpu"] == "a CPU"
    assert evidence.comparison is None
    assert evidence.checkpoint is None  # the folder has none


def test_of_a_control_prefix_off_is_no_second_column(make_run: MakeRun) -> None:
    evidence = read_evidence(make_run(is_modulated=False, ablations=["on", "off", "on-blank"]))
    assert not evidence.has_prefix
    assert [one.name for one in evidence.evaluations] == ["on", "on-blank"]


def test_several_controls_are_told_apart(make_run: MakeRun) -> None:
    run = make_run(ablations=["on"])
    controls = [make_run(name, is_modulated=False, ablations=["on"]) for name in ("a", "b")]
    assert [one.label for one in read_evidence(run, controls).evaluations] == ["prefix on", "control 1", "control 2"]


def test_what_is_no_run_or_was_not_evaluated_is_one_message_with_the_remedy(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: is no folder; give the run.output_dir"):
        read_evidence(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no run"):
        read_evidence(tmp_path / "empty")
    run = make_run(ablations=[])
    evaluate = r"artkv evaluate --checkpoint \S*run --split train --all-ablations"
    with pytest.raises(UserError, match=rf"run: has no evaluation to report; make it with: \S*{evaluate}"):
        read_evidence(run)
    config = run / "config.yaml"
    for split in ("val", "test"):  # the last one that it has questions of is told
        config.write_text(config.read_text().replace(f"  {split}: null", f"  {split}: x.csv"))
        with pytest.raises(UserError, match=rf"make it with: .* --split {split} --all-ablations"):
            read_evidence(run)
    with pytest.raises(UserError, match="run: the val questions were not answered; make it with: .*--split val"):
        read_evidence(run, split="val")


def test_a_control_that_is_none_or_did_not_answer_the_questions_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(UserError, match="run: was trained with a prefix and is no control"):
        read_evidence(run, [run])
    with pytest.raises(UserError, match=r"lazy: the test questions were not answered; make it with: .*lazy"):
        read_evidence(run, [make_run("lazy", is_modulated=False, ablations=[])])
    other = make_run("other", questions_about(11), is_modulated=False, ablations=["on"])
    with pytest.raises(UserError, match="has 33 questions, .* 36; evaluate both on the same CSV file"):
        read_evidence(run, [other])


def test_a_control_that_was_trained_with_another_prompt_is_reported_and_one_asked_otherwise_is_not(
    make_run: MakeRun,
) -> None:
    runs = [make_run("run"), make_run("control", is_modulated=False)]
    for run, prompt in zip(runs, ("{question}", "{question}?"), strict=True):
        path = run / "eval" / "test-on" / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt": prompt}))
    with pytest.raises(UserError, match="control/eval/.* was answered with dataset.prompt = .*; evaluate both alike"):
        read_evidence(runs[0], runs[1:])
    config = override_config(load_config(runs[1] / "config.yaml"), ["dataset.prompt={question}?"])
    (runs[1] / "config.yaml").write_text(dump_config(config))
    assert read_evidence(runs[0], runs[1:]).evaluations[-1].name == "control"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval/test-on/metrics.json", "{}", "cannot be read"),
        ("eval/test-on/metrics.json", '{"checkpoint": "a"}', "metrics.json: cannot be read"),
        ("eval/test-on/predictions.csv", "a,b\n", "has no column question_id"),
        ("eval/test-on/comparison.json", '{"split": 1}', "comparison.json: cannot be read .*artkv compare"),
        ("environment.json", "[]", "environment.json: is not what artkv writes"),
    ],
)
def test_a_damaged_file_is_one_message(make_run: MakeRun, name: str, content: str, message: str) -> None:
    run = make_run()
    (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_evidence(run)


def test_without_what_is_no_more_than_nice_to_have_there_is_a_report(make_run: MakeRun) -> None:
    run = make_run()
    for name in ("environment.json", "metrics.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "eval" / "test-shuffled")
    evidence = read_evidence(run)
    assert evidence.environment == {}
    assert evidence.training == []
    assert [one.name for one in evidence.evaluations] == ["on", "off", "on-blank"]


def test_the_split_that_matters_most_is_taken_first(make_run: MakeRun) -> None:
    run = make_run(ablations=["on"])
    shutil.copytree(run / "eval" / "test-on", run / "eval" / "val-on")
    metrics = run / "eval" / "val-on" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"split": "test"', '"split": "val"'))
    assert read_evidence(run).split == "test"
    assert read_evidence(run, split="val").split == "val"
    shutil.rmtree(run / "eval" / "test-on")
    assert read_evidence(run).split == "val"


def test_a_line_that_is_just_being_written_is_no_record(make_run: MakeRun) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "train", "step": 310})[:-5])
    assert [record["step"] for record in read_evidence(run).training] == list(range(10, 301, 10))


def test_a_line_that_is_no_record_is_told_once(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("garbage\n")
    read_evidence(run)
    assert capsys.readouterr().err.count("1 lines are no records and left out") == 1


def test_bytes_in_texts_that_are_no_utf8_are_read(make_run: MakeRun) -> None:
    run = make_run(ablations=[])
    questions = [("a.jpg", "Which style?", "baroque", "style")]
    write_evaluation(run, "on", questions, ["baroque"])
    path = run / "eval" / "test-on" / "predictions.csv"
    path.write_bytes(path.read_bytes().replace(b"a.jpg", b"a\xe9.jpg"))
    assert read_evidence(run).evaluations[0].predictions.columns["image"] == ["a\udce9.jpg"]


MASKED = ["on", "off", "shuffled", "palette-off", "palette-shuffled", "brushwork-off", "brushwork-shuffled", "on-blank"]


def test_several_encoders_have_columns_of_their_own_and_runs_without_them(make_run: MakeRun) -> None:
    run = make_run(ablations=MASKED, encoders=["palette", "brushwork"])
    control = make_run("control", is_modulated=False, ablations=["on"])
    without = make_run("without", ablations=["on"], encoders=["brushwork"])
    evidence = read_evidence(run, [without, control])
    assert [(one.name, one.label) for one in evidence.evaluations] == [
        ("on", "prefix on"), ("off", "prefix off"), ("shuffled", "shuffled"), ("palette-off", "palette off"),
        ("palette-shuffled", "palette shuffled"), ("brushwork-off", "brushwork off"),
        ("brushwork-shuffled", "brushwork shuffled"), ("on-blank", "question only"), ("control", "control"),
        ("retrained", "without palette"),
    ]  # fmt: skip
    other = make_run("other", ablations=["on"], encoders=["lines"])
    with pytest.raises(UserError, match="is no control; give runs without one, or without some of this run's encoders"):
        read_evidence(run, [other])
