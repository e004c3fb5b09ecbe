"""What a report says of training and machine: numbers by hand, and nothing of somebody's disk."""

from pathlib import Path

import pytest

from artkv.config import KVModulationConfig
from artkv.report.evidence import read_evidence
from artkv.report.facts import (
    _injection,
    duration,
    model_facts,
    settings_text,
    training_facts,
    training_seconds,
    versions,
    without_folders,
)
from tests.report.conftest import MakeRun


def test_time_in_steps_is_questions_by_rate_without_pauses() -> None:
    records = [
        {"questions_seen": 320, "questions_per_second": 32.0},  # 10 s
        {"questions_seen": 640, "questions_per_second": 64.0},  # 5 s
        {"questions_seen": 700},  # no rate was written
        {"questions_seen": 740, "questions_per_second": 20.0},  # 2 s
    ]
    assert training_seconds(records) == pytest.approx(17)
    assert training_seconds([]) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.4, "8 seconds"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (5399, "90 minutes"),
        (11520, "3.2 hours"),
    ],
)
def test_durations_are_in_the_unit_that_people_would_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_training_and_machine_are_told(make_run: MakeRun) -> None:
    evidence = read_evidence(make_run())
    facts = dict(training_facts(evidence))
    assert facts["steps"] == "300 of 300"
    assert facts["questions seen"] == "9,600"
    assert facts["time in training steps"] == "2 minutes"  # 9600 / 64 = 150 s
    assert facts["first to last log line"] == "1970-01-01 00:16 UTC to 1970-01-01 00:21 UTC, 5 minutes"
    assert facts["best validation exact match"] == "0.900 at step 300"
    assert "state" not in facts
    told = dict(model_facts(evidence))
    assert told["injection"] == "concat: 8 tokens, one for all layers"
    assert told["GPUs"] == "none"
    assert told["CPU"] == "a CPU, 2 cores usable"
    assert told["host memory"] == "16 GiB"
    assert told["hashes"].startswith("unknown")
    assert dict(versions(evidence)) == {"python": "3.11.9", "artkv": "0.1.0", "torch": "2.14.1"}


def test_a_control_is_told_to_be_one(make_run: MakeRun) -> None:
    told = dict(model_facts(read_evidence(make_run(is_modulated=False))))
    assert told["prefix"] == "none: the control"
    assert "art encoder" not in told


def test_no_folder_of_somebodys_disk_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    evidence = read_evidence(make_run())
    assert str(tmp_path) not in settings_text(evidence)
    assert "image_root: images" in settings_text(evidence)
    assert "blip2: Salesforce/blip2-opt-2.7b" in settings_text(evidence)
    assert without_folders("picture /home/x/y z/b.jpg: no such file; see a/b, ./c/d") == (
        "picture y z/b.jpg: no such file; see a/b, ./c/d"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gate": "zero"}, "concat: 8 tokens, one for all layers, a gate that starts at zero"),
        (
            {"injection": "decoupled", "shared_across_layers": False, "gate": "zero", "gate_per": "head"},
            "decoupled: 8 tokens, one for each layer, gates of heads that start at zero",
        ),
        ({"injection": "film"}, "film: scales and shifts of keys and values, one for all layers"),
        (
            {"injection": "film", "film": "queries", "gate": "zero"},
            "film: scales and shifts of the query tokens, a gate that starts at zero",
        ),
        ({"injection": "prompt", "num_prefix_tokens": 3}, "prompt: 3 tokens, read by OPT"),
    ],
)
def test_the_injection_is_told(settings: dict, text: str) -> None:
    assert _injection(KVModulationConfig(**settings)) == text
