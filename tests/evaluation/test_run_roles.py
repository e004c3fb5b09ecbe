"""What runs are taken for, by their settings."""

from pathlib import Path

import pytest

from artkv.config import Config, dump_config, override_config
from artkv.errors import UserError
from artkv.evaluation.run_roles import Run, open_run, roles_of

CONTROL = "kv_modulation.enabled=false"


def run(name: str, *overrides: str) -> Run:
    return Run(Path(name), override_config(Config(), overrides))


def told(*runs: Run) -> list[str]:
    return [one.taken_for for one in roles_of(runs).told]


def test_seeds_controls_and_others_are_told_apart() -> None:
    runs = [
        run("outputs/demo"),
        run("outputs/control", CONTROL, "run.output_dir=outputs/control"),
        run("outputs/demo7", "training.seed=7"),
        run("outputs/control7", CONTROL, "training.seed=7"),
        run("outputs/lora", "trainable.lora.targets=[opt]", "training.num_epochs=2"),
    ]
    roles = roles_of(runs)
    assert [one.folder.name for one in roles.seeds] == ["demo", "demo7"]
    assert [one.folder.name for one in roles.controls] == ["control", "control7"]
    assert list(roles.others) == ["lora"]
    assert [one.taken_for for one in roles.told] == [
        "the run that is compared, of seed 1337",
        "a control, of seed 1337",
        "the same with seed 7",
        "a control, of seed 7",
        "another run: it differs in trainable.lora.targets, training.num_epochs",
    ]
    assert [one.training_seed for one in roles.told] == [1337, 1337, 7, 7, 1337]


def test_where_a_run_lies_and_how_it_is_evaluated_makes_it_no_other_run() -> None:
    same = [
        "training.seed=7", "run.output_dir=elsewhere", "frozen.opt=stream", "evaluation.batch_size=3",
        "dataset.image_root=moved", "dataset.workers=1", "training.activation_checkpointing=true",
    ]  # fmt: skip
    assert told(run("a"), run("b", *same))[1] == "the same with seed 7"


def test_a_control_that_differs_in_more_is_no_strict_one() -> None:
    strict = run("c", CONTROL, "kv_modulation.num_prefix_tokens=2", "efficientnet.image_size=64")
    assert told(run("a"), strict)[1] == "a control, of seed 1337"
    shorter = run("c", CONTROL, "training.num_epochs=1")
    assert told(run("a"), shorter)[1] == (
        "a control, of seed 1337; no strict one: it differs in training.num_epochs too"
    )


def test_a_control_by_itself_may_be_compared_with_its_seeds() -> None:
    roles = roles_of([run("c", CONTROL), run("c7", CONTROL, "training.seed=7")])
    assert len(roles.seeds) == 2
    assert roles.controls == []


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([run("c", CONTROL), run("a")], "c: was trained without a prefix, a with one; name first"),
        ([run("a"), run("b")], "b: has the settings and the seed of a, and is no further seed of it; leave it out"),
        ([run("a"), run("c", CONTROL), run("d", CONTROL)], "d: has the settings and the seed of c, "),
        ([run("a"), run("x/off", "training.num_epochs=1")], "x/off: something else is called off here; rename"),
        (
            [run("a"), run("x/b", "training.num_epochs=1"), run("y/b", "training.num_epochs=2")],
            "y/b: something else is called b here; rename",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_remedy(runs: list[Run], message: str) -> None:
    with pytest.raises(UserError, match=message):
        roles_of(runs)


def test_a_runs_folder_is_opened_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run's folder, there is no config.yaml in it; give a run.output_dir"):
        open_run(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(override_config(Config(), ["training.seed=5"])))
    assert open_run(tmp_path).seed == 5
