"""What runs are taken for, by their settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artkv.config import Config, dump_config, override_config
from artkv.errors import UserError
from artkv.evaluation.run_roles import Run, ablations_of, is_as_meant, open_run, roles_of
from artkv.run_folder.checkpoint import write_checkpoint
from artkv.run_folder.state import Identity, Progress, TrainableState

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


@pytest.mark.parametrize(
    "settings", [["frozen.opt=nf4"], ["frozen.opt=int8"], ["frozen.storage=int8", "frozen.opt=stream"]]
)
def test_quantised_frozen_weights_are_another_model(settings: list[str]) -> None:
    key = settings[0].partition("=")[0]
    other = told(run("a"), run("b", "training.seed=7", *settings))[1]
    assert other == f"another run: it differs in training.seed, {key}"
    control = told(run("a"), run("c", CONTROL, *settings))[1]
    assert control == f"a control, of seed 1337; no strict one: it differs in {key} too"
    for place in ("resident", "stream"):
        assert told(run("a"), run("c", CONTROL, f"frozen.opt={place}"))[1] == "a control, of seed 1337"


def test_of_two_runs_without_a_prefix_its_settings_are_of_no_use() -> None:
    others = [run("d", CONTROL, "kv_modulation.injection=decoupled", "efficientnet.image_size=64", "training.seed=7")]
    assert told(run("a"), run("c", CONTROL), *others)[2] == "a control, of seed 7"


def trained(folder: Path, identity: Identity, *overrides: str) -> Run:
    """A run with a checkpoint, as a training leaves it."""
    config = override_config(Config(), overrides)
    path = folder / "checkpoints" / "step_00000004"
    path.parent.mkdir(parents=True)
    write_checkpoint(
        path, TrainableState(*({"weight": torch.ones(2)} for _ in range(3)), 4), Progress(step=4), identity, config
    )
    return Run(folder, config)


ONE_GPU = Identity("frozen", "questions", "bfloat16", 1)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(ONE_GPU, micro_batches_per_step=8), "ranks x accumulation"),
        (replace(ONE_GPU, dtype="float32"), "model.dtype"),
        (replace(ONE_GPU, data_hash="others"), "the training questions"),
    ],
)
def test_what_came_of_equal_settings_makes_a_control_no_strict_one(tmp_path: Path, other: Identity, what: str) -> None:
    first = trained(tmp_path / "run", ONE_GPU)
    assert told(first, trained(tmp_path / "same", ONE_GPU, CONTROL))[1] == "a control, of seed 1337"
    control = trained(tmp_path / "control", other, CONTROL)
    assert told(first, control)[1] == f"a control, of seed 1337; no strict one: it differs in {what} too"
    seed = trained(tmp_path / "seed", other, "training.seed=7")
    assert told(first, seed)[1] == f"another run: it differs in training.seed, {what}"


def test_the_same_step_of_more_ranks_is_the_same_training(tmp_path: Path) -> None:
    """Eight micro-batches, of eight ranks or of one that accumulates them."""
    eight = replace(ONE_GPU, micro_batches_per_step=8)
    accumulating = trained(tmp_path / "one", eight, "training.gradient_accumulation_steps=8", "training.seed=7")
    assert told(trained(tmp_path / "run", eight), accumulating)[1] == "the same with seed 7"


def test_a_control_whose_training_has_not_ended_is_told(tmp_path: Path) -> None:
    control = Run(tmp_path, override_config(Config(), [CONTROL]))
    for state, expected in (("preempted", "; its training has not ended"), ("finished", "")):
        (tmp_path / "status.json").write_text(json.dumps({"state": state}))
        assert told(run("a"), control)[1] == f"a control, of seed 1337{expected}"


def test_a_control_by_itself_may_be_compared_with_its_seeds() -> None:
    roles = roles_of([run("c", CONTROL), run("c7", CONTROL, "training.seed=7")])
    assert len(roles.seeds) == 2
    assert roles.controls == []


def test_two_runs_of_one_other_setting_and_seed_are_two_others() -> None:
    others = [run(f"x/{name}", "training.num_epochs=1") for name in ("b", "c")]
    roles = roles_of([run("a"), *others, run("x/d", "training.num_epochs=1", "training.seed=7")])
    assert {name: [one.folder.name for one in of] for name, of in roles.others.items()} == {"b": ["b", "d"], "c": ["c"]}
    assert [one.taken_for for one in roles.told][2:] == [
        "another run: it differs in training.num_epochs", "the same as b, of seed 7",
    ]  # fmt: skip


def test_what_is_no_further_seed_and_no_strict_control_is_not_as_meant(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "running"}))
    runs = [
        run("a"), run("b", "training.seed=7"), run("c", CONTROL), run("d", CONTROL, "training.num_epochs=1"),
        run("e", "training.num_epochs=2"), run("f", "training.num_epochs=2", "training.seed=7"),
        Run(tmp_path, override_config(Config(), [CONTROL, "training.seed=8"])),
    ]  # fmt: skip
    assert [is_as_meant(one) for one in roles_of(runs).told] == [True, True, True, False, False, False, False]
    assert not is_as_meant(roles_of([run("a"), run("d", CONTROL, "training.num_epochs=1")]).told[1])


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
    with pytest.raises(UserError, match="contrl: no such folder; give the run.output_dir"):
        open_run(tmp_path / "contrl")
    with pytest.raises(UserError, match="is no run's folder, there is no config.yaml in it; give a run.output_dir"):
        open_run(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(override_config(Config(), ["training.seed=5"])))
    with pytest.raises(UserError, match="holds no run, though a config.yaml; give a run.output_dir"):
        open_run(tmp_path)  # a person's config
    (tmp_path / "status.json").write_text("{}")
    assert open_run(tmp_path).seed == 5


ENCODERS = "art_encoders=[{name: a, checkpoint: /a.pth}, {name: b, checkpoint: /b.pth}, {name: c, checkpoint: /c.pth}]"
ALL_THREE = ("efficientnet=null", ENCODERS)


def of(*names: str, **changes: str) -> tuple[str, str]:
    entries = (f"{{name: '{name}', checkpoint: {changes.get(name, f'/{name}.pth')}}}" for name in names)
    return "efficientnet=null", f"art_encoders=[{', '.join(entries)}]"


def test_runs_that_lack_encoders_are_told_by_which(tmp_path: Path) -> None:
    runs = [
        run("all", *ALL_THREE),
        run("ab", *of("a", "b")),
        run("ca", *of("c", "a"), "run.output_dir=elsewhere"),
        run("b", "efficientnet.checkpoint=/b.pth", "training.seed=7"),
        run("b8", "efficientnet.checkpoint=/b.pth", "training.seed=8"),
        run("control", CONTROL),
    ]
    roles = roles_of(runs)
    names = {name: [one.folder.name for one in group] for name, group in roles.without.items()}
    assert names == {"without c": ["ab"], "without b": ["ca"], "without a, c": ["b", "b8"]}
    assert [one.taken_for for one in roles.told][1:] == [
        "trained without c, of seed 1337", "trained without b, of seed 1337", "trained without a, c, of seed 7",
        "trained without a, c, of seed 8", "a control, of seed 1337",
    ]  # fmt: skip
    assert not roles.others


@pytest.mark.parametrize(
    "overrides",
    [
        of("a", "b", b="/other.pth"),
        of("a", "d"),
        (*of("a", "b"), "training.num_epochs=1"),
        (*of("a", "b"), "kv_modulation.num_prefix_tokens=2"),
        of("a", "b", "c", c="/other.pth"),
    ],
)
def test_runs_with_other_encoders_or_trainings_lack_none(overrides: tuple[str, ...]) -> None:
    assert told(run("all", *ALL_THREE), run("other", *overrides))[1].startswith("another run: it differs in ")
    more = run("more", *ALL_THREE)
    assert told(run("ab", *of("a", "b")), more)[1].startswith("another run: ")


def test_two_of_one_seed_without_the_same_are_refused() -> None:
    with pytest.raises(UserError, match="has the settings and the seed of x, and is no further seed of it"):
        roles_of([run("all", *ALL_THREE), run("x", *of("a", "b")), run("y", *of("b", "a"))])


def test_names_of_encoders_ablations_are_no_others() -> None:
    folders = ablations_of(run("all", *of("on", "blank")).config)
    assert folders == {
        "off": "off", "shuffled": "shuffled", "blank": "on-blank", "on off": "on-off", "on shuffled": "on-shuffled",
        "blank off": "blank-off", "blank shuffled": "blank-shuffled",
    }  # fmt: skip
    assert ablations_of(Config()) == {"off": "off", "shuffled": "shuffled", "blank": "on-blank"}
