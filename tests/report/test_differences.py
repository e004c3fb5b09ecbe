"""What a comparison says, against counts and means by NumPy."""

import numpy as np
import pytest

from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.run_roles import open_run
from artkv.report.differences import described_comparison
from artkv.report.evidence import Evidence, read_evidence
from tests.report.conftest import MakeRun


@pytest.fixture
def evidence(make_run: MakeRun) -> Evidence:
    run, control = make_run(), make_run("control", is_modulated=False, ablations=["on"])
    compare_runs([open_run(run), open_run(control)], None, "exact_match")
    return read_evidence(run, [control])


def right(evidence: Evidence) -> np.ndarray:
    """(ablations, Q), by the texts alone."""
    columns = [one.predictions.columns for one in evidence.evaluations]
    return np.array([[p == a for p, a in zip(one["prediction"], one["answer"], strict=True)] for one in columns])


def test_tables_have_what_the_answers_say_the_control_first(evidence: Evidence) -> None:
    tables = described_comparison(evidence)["differences"]
    assert [(table["with_label"], table["label"]) for table in tables] == [
        *(("prefix on", label) for label in ("control", "prefix off", "shuffled", "question only")),
        ("shuffled", "control"), ("shuffled", "prefix off"),
    ]  # fmt: skip
    given = right(evidence)
    styles = np.array([kind == "style" for kind in evidence.evaluations[0].predictions.columns["question_type"]])
    for table, first, place in zip(tables, (0, 0, 0, 0, 2, 2), (4, 1, 2, 3, 4, 1), strict=True):
        assert [row["name"] for row in table["rows"]] == ["style", "subject", "time of day", "all"]
        for row, chosen in ((table["rows"][0], styles), (table["rows"][-1], np.full(36, True))):
            on, other = given[first, chosen], given[place, chosen]
            assert row["questions"] == str(chosen.sum())
            assert row["with_prefix"] == f"{on.mean():.3f}"
            assert row["without"] == f"{other.mean():.3f}"
            assert float(row["difference"].replace("−", "-")) == pytest.approx(on.mean() - other.mean(), abs=5e-4)
            assert row["wins"] == str((on & ~other).sum())
            assert row["losses"] == str((other & ~on).sum())
        assert table["rows"][-1]["p_holm"] == "–"


def test_verdicts_are_by_type_and_guesses_beside_the_model(evidence: Evidence) -> None:
    described = described_comparison(evidence)
    assert [name for name, _ in described["verdicts"]] == ["style", "subject", "time of day", "all"]
    assert described["verdicts"][0][1].startswith("the prefix adds ")
    answers = np.array(evidence.evaluations[0].predictions.columns["answer"])
    styles = np.array(evidence.evaluations[0].predictions.columns["question_type"]) == "style"
    names, counts = np.unique(answers[styles], return_counts=True)
    row = described["guesses"][0]
    assert row["guess"].split(" (")[0] in names[counts == counts.max()]
    assert row["guess_scores"] == f"{counts.max() / styles.sum():.3f}"
    assert row["model_scores"] == f"{right(evidence)[0, styles].mean():.3f}"
    assert described["seeds"] == []


def test_seeds_are_told_where_there_are_several(make_run: MakeRun) -> None:
    runs = [make_run("run"), make_run("other_seed")]
    path = runs[1] / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 1337", "seed: 7"), encoding="utf-8")
    compare_runs([open_run(run) for run in runs], None, "exact_match")
    described = described_comparison(read_evidence(runs[0]))
    assert {row["against"] for row in described["seeds"]} >= {"prefix off", "shuffled"}
    row = described["seeds"][0]
    assert row["each"].split(", ") == [row["mean"]] * 2  # both gave the same answers
    assert row["spread"] == "0.000"
    assert described["seed_warning"]


def test_without_a_comparison_and_for_a_control_there_is_nothing_to_tell(make_run: MakeRun) -> None:
    assert described_comparison(read_evidence(make_run()))["differences"] == []
    control = make_run("control", is_modulated=False, ablations=["on", "on-blank"])
    compare_runs([open_run(control)], None, "exact_match")
    described = described_comparison(read_evidence(control))
    assert described["differences"] == described["verdicts"] == []
    assert len(described["guesses"]) == 3


def test_encoders_have_a_table_of_masking_and_retraining(make_run: MakeRun) -> None:
    masked = ["palette-off", "palette-shuffled", "brushwork-off", "brushwork-shuffled"]
    run = make_run(ablations=["on", "off", "shuffled", *masked, "on-blank"], encoders=["palette", "brushwork"])
    without = make_run("without", ablations=["on"], encoders=["brushwork"])
    compare_runs([open_run(run), open_run(without)], "test", "exact_match")
    evidence = read_evidence(run, [without])
    rows = described_comparison(evidence)["encoders"]
    assert [(row["encoder"], row["name"]) for row in rows] == [
        (encoder, kind)
        for encoder in ("palette", "brushwork")
        for kind in (*evidence.evaluations[0].scores.by_type, "all")
    ]
    assert [cell is None for cell in rows[0]["cells"]] == [False, False, False]
    assert [cell is None for cell in rows[-1]["cells"]] == [False, False, True]
    compared = evidence.comparison
    assert compared is not None
    value = compared.against["palette off"].overall.difference.value
    assert float(rows[3]["cells"][0]["difference"].replace("−", "-")) == pytest.approx(value, abs=5e-4)
