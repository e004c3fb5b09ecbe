"""What the report says of choices, from the evaluations that have them."""

import json
from pathlib import Path

import numpy as np

from artkv.evaluation.calibration import calibrate
from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.run_roles import open_run
from artkv.evaluation.scores import ChoiceGroup, ChoiceScores, Estimate
from artkv.report.choices import described_choices
from artkv.report.evidence import read_evidence
from artkv.report.writing import ReportSettings, write_report
from tests.report.conftest import MakeRun


def add_choices(run: Path, ablation: str, accuracy: float) -> ChoiceGroup:
    """To an evaluation's metrics: ten styles chosen with a probability of 0.8."""
    calibration = calibrate(np.full(10, 0.8), np.arange(10) < 10 * accuracy)
    group = ChoiceGroup(10, 5, Estimate(accuracy, 0.1, 0.9), Estimate(0.25, 0.0, 0.5), calibration)
    path = run / "eval" / f"test-{ablation}" / "metrics.json"
    tree = json.loads(path.read_text())
    scores = ChoiceScores(group, {"style": group}, {"style": ["cubism", "<b>mosaic"]}, 3)
    path.write_text(json.dumps({**tree, "choices": scores.to_json()}))
    return group


def test_choices_are_described_for_each_evaluation_that_has_them(make_run: MakeRun) -> None:
    run = make_run()
    assert described_choices(read_evidence(run)) is None
    group = add_choices(run, "on", 0.6)
    add_choices(run, "shuffled", 0.5)
    described = described_choices(read_evidence(run))
    assert described is not None
    assert described["labels"] == ["prefix on", "shuffled"]
    assert [(row["name"], row["count"], row["candidates"]) for row in described["rows"]] == [
        ("style", "10", "2"), ("all", "10", ""),
    ]  # fmt: skip
    assert described["rows"][0]["cells"] == [group.accuracy, Estimate(0.5, 0.1, 0.9)]
    assert described["numbers"][1] == ("expected calibration error", ["0.200", "0.300"])
    assert described["bins"] == [("0.733 to 0.800", "10", "0.800", "0.600")]
    assert "10 choices" in described["plot"]


def test_the_page_has_them_and_a_comparison_of_them(make_run: MakeRun) -> None:
    run = make_run()
    plain = write_report(ReportSettings(run, attention=0)).read_text("utf-8")
    assert "Chosen among few answers" not in plain
    for ablation in ("on", "off", "shuffled", "on-blank"):
        add_choices(run, ablation, 0.6)
        path = run / "eval" / f"test-{ablation}" / "predictions.csv"
        header, *rows = path.read_text().splitlines()
        chosen = [f"{row},{'cubism' if ',style,' in row else ''}" for row in rows]
        path.write_text("\n".join([f"{header},choice", *chosen]) + "\n")
    compare_runs([open_run(run)], None, "accuracy")
    page = write_report(ReportSettings(run, attention=0)).read_text("utf-8")
    assert "Chosen among few answers" in page
    assert "calibration error, 0.200, is the mean" in page
    assert "The right answer to 3 of these questions is no candidate." in page
    assert "gain over the others on the same questions, in accuracy" in page
