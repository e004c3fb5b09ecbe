"""What an evaluation writes is what a comparison reads."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from artkv.errors import UserError
from artkv.evaluation.answering import shuffled_painting_index
from artkv.evaluation.results import (
    Answers,
    check_places,
    check_same_questions,
    evaluation_folder,
    read_predictions,
    read_scores,
)
from artkv.evaluation.scores import score_predictions
from tests.damage import check, damaged, retyped
from tests.evaluation.evaluations import STYLES, answers_to, choices_of, make_table, write_evaluation
from tests.mounted import Disk


def test_paintings_are_named_by_their_path_below_the_pictures_folder_wherever_that_is(tmp_path: Path) -> None:
    table = make_table(tmp_path / "here", paintings=3)
    columns = Answers(table, ["x"] * 6, tmp_path / "here" / "images").columns()
    assert columns["image"] == ["p0.png", "p0.png", "p1.png", "p1.png", "p2.png", "p2.png"]
    above = Answers(table, ["x"] * 6, tmp_path / "here").columns()
    assert above["image"][0] == "images/p0.png"
    assert columns["prefix_of"] == [""] * 6


def test_who_gave_the_shuffled_prefix_is_told(tmp_path: Path) -> None:
    table = make_table(tmp_path, paintings=5)
    source = shuffled_painting_index(5, seed=3)
    columns = Answers(table, ["x"] * 10, tmp_path / "images", source).columns()
    assert columns["prefix_of"] == [f"p{source[row // 2]}.png" for row in range(10)]
    assert all(own != other for own, other in zip(columns["image"], columns["prefix_of"], strict=True))


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    table = make_table(tmp_path, paintings=3)
    answers = ['oil, "on" canvas', "NA", "", "two\nlines", "Über", "style 2"]
    write_evaluation(tmp_path / "run", "on", table, answers)
    folder = evaluation_folder(tmp_path / "run", "test", "on")
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.csv"]
    read = read_predictions(folder)
    assert read.columns["prediction"] == answers
    assert read.columns["answer"] == list(table.answers)
    assert read.checkpoint == "step_00000081"
    expected = score_predictions(answers, list(table.answers), [""] * 6, 10, 0)
    for metric in ("exact_match", "token_f1", "bleu", "bleu_artquest"):
        assert read.scores(metric).mean() == pytest.approx(getattr(expected.overall, metric).value)
    with read.path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["exact_match"]) for row in rows] == read.scores("exact_match").tolist()
    assert np.allclose([float(row["token_f1"]) for row in rows], read.scores("token_f1"), atol=5e-5)  # four decimals
    assert str(tmp_path) not in read.path.read_text(encoding="utf-8")


def test_the_first_question_that_differs_is_named(tmp_path: Path) -> None:
    table = make_table(tmp_path, paintings=4)
    for run, others in (("a", table), ("b", make_table(tmp_path, paintings=5))):
        write_evaluation(tmp_path / run, "on", others, answers_to(others, 2))
    first, longer = (read_predictions(evaluation_folder(tmp_path / run, "test", "on")) for run in ("a", "b"))
    check_same_questions(first, first)
    with pytest.raises(UserError, match="has 10 questions, .*a/eval/test-on/predictions.csv 8; evaluate both on"):
        check_same_questions(first, longer)
    path = tmp_path / "b" / "eval" / "test-on" / "predictions.csv"
    path.write_text(path.read_text().replace("p1.png,Which colour?", "p1.png,Which hue?"))
    changed = read_predictions(path.parent)
    with pytest.raises(UserError, match="in row 4 question is 'Which hue\\?', not 'Which colour\\?'; evaluate both"):
        check_same_questions(first, changed)


def test_what_cannot_be_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "run", "on", make_table(tmp_path), answers_to(make_table(tmp_path), 1))
    whole = tmp_path / "run" / "eval" / "test-on"
    for number, (name, content, message) in enumerate(
        [
            ("predictions.csv", "question,answer\nx,y\n", "predictions.csv: has no column question_id; evaluate again"),
            (
                "predictions.csv",
                (whole / "predictions.csv").read_text().rstrip("\n") + ",more\n",
                "predictions.csv: row [0-9]+ has more fields than the header: the file was changed; evaluate again",
            ),
            ("metrics.json", "{", "metrics.json: is not what artkv writes; run artkv evaluate again"),
            ("metrics.json", json.dumps({"split": "test"}), "cannot be read .*checkpoint.*; run artkv evaluate again"),
            (
                "metrics.json",
                json.dumps({"split": "val"}),
                "metrics.json: split = 'val', and it lies in the folder test-on; put that split's own file there, or",
            ),
            ("metrics.json", None, "cannot be read .*No such file.*evaluate again"),
        ]
    ):
        folder = tmp_path / f"copy {number}" / "test-on"
        shutil.copytree(whole, folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(UserError, match=message):
            read_predictions(folder)


def test_choices_have_columns_of_their_own_and_come_back_in_the_place_of_predictions(tmp_path: Path) -> None:
    table = make_table(tmp_path, paintings=3)
    write_evaluation(tmp_path / "run", "on", table, answers_to(table, 1), choices=choices_of(table, 2))
    folder = evaluation_folder(tmp_path / "run", "test", "on")
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["choice", "choice_probability", "gold_probability"]
    assert list(rows[0])[-3:] == columns
    assert [[row[name] for name in columns] for row in rows[:2]] == [["style 0", "0.7", "0.25"], ["", "", ""]]
    read = read_predictions(folder)
    assert {name: read.columns[name] for name in columns} == {name: [row[name] for row in rows] for name in columns}
    assert read.columns["prefix_of"] == [""] * 6
    chosen = read.of_choices()
    assert chosen.columns["prediction"] == ["style 0", "style 1", "style X"]
    assert chosen.columns["question_type"] == ["style"] * 3
    assert chosen.scores("accuracy").tolist() == [1, 1, 0]
    assert chosen.candidates == STYLES
    write_evaluation(tmp_path / "run", "on", table, answers_to(table, 1))
    with pytest.raises(UserError, match=r"predictions.csv: has no choices; evaluate again with --choices"):
        read_predictions(folder).of_choices()


def test_a_full_or_unwritable_place_is_found_before_anything_is_answered(disk: Disk) -> None:
    folder = disk.folder / "eval" / "test-on"
    check_places([folder, disk.folder / "eval" / "test-off"])
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "metrics.json").mkdir()
    with pytest.raises(UserError, match="metrics.json is a folder; give a file in it, or another place"):
        check_places([folder])
    (folder / "metrics.json").rmdir()
    disk.fill()
    with pytest.raises(UserError, match="test-on: the evaluation's folder: .* cannot be written .No space left"):
        check_places([folder])


def test_what_there_is_no_room_for_leaves_the_evaluation_before_whole(disk: Disk) -> None:
    table = make_table(disk.folder, paintings=40)
    write_evaluation(disk.folder, "on", table, answers_to(table, 1))
    folder = evaluation_folder(disk.folder, "test", "on")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    disk.fill(leave=len(before["predictions.csv"]) // 4096 * 4096 + 4096)  # room for the first of the two
    with pytest.raises(UserError, match="cannot be written .No space left on device.; make room there, and evaluate"):
        write_evaluation(disk.folder, "on", table, answers_to(table, 2))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    table = make_table(tmp_path, paintings=3)
    write_evaluation(tmp_path / "run", "on", table, answers_to(table, 1), choices=choices_of(table, 2))
    folder = evaluation_folder(tmp_path / "run", "test", "on")
    content = (folder / name).read_bytes()
    trees = [json.dumps(tree).encode() for tree in retyped(json.loads(content))] if name == "metrics.json" else []
    for new in [*damaged(content), *trees]:
        (folder / name).write_bytes(new)
        check(lambda: read_predictions(folder).of_choices(), new)
        check(lambda: read_scores(folder), new)
    for refused in ('{"overall": 1, "by_type": {}}', '{"overall": {"count": "3"}, "by_type": {}}'):
        (folder / "metrics.json").write_text(refused)
        with pytest.raises(UserError, match=r"metrics.json: .*; run artkv evaluate again"):
            read_scores(folder)
