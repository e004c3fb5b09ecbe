"""Whole runs with each way of injecting art features: training, resume, evaluation, and who may load what."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from artkv.api import _candidates, _with_choices
from artkv.config import Config, override_config
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.answering import ALL_ABLATIONS, Ablation, Answered, answer_under, answering_settings
from artkv.evaluation.attention import attention_of, looks_of, mass_over_paintings
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.session import Session
from tests.models.test_cuda_graphs import rerunning
from tests.models.test_injections import open_up
from tests.training_runs import Stopped, Train, final_adapter, final_bytes

FILM = ["kv_modulation.injection=film", "kv_modulation.num_prefix_tokens=8"]
WAYS = {
    "concat, gates of heads": ["kv_modulation.gate=zero", "kv_modulation.gate_per=head"],
    "decoupled": ["kv_modulation.injection=decoupled"],
    "decoupled, gates of layers": [
        "kv_modulation.injection=decoupled", "kv_modulation.gate=zero", "kv_modulation.gate_per=layer",
        "trainable.lora.targets=[qformer, opt]", "trainable.lora.rank=2",
    ],
    "film": [*FILM, "trainable.lora.targets=[qformer]", "trainable.lora.rank=2"],
    "film of queries": [*FILM, "kv_modulation.film=queries"],
    "prompt": ["kv_modulation.injection=prompt", "trainable.lora.targets=[opt]", "trainable.lora.rank=2"],
}  # fmt: skip
EVERY = pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)


@EVERY
def test_a_stopped_run_goes_on_to_the_same_bytes_and_everything_moves(
    run_training: Train, tiny_config: Config, tmp_path: Any, one_process: World, settings: list[str]
) -> None:
    settings = [*settings, "training.num_epochs=1"]
    run_training(settings)
    run_dir = tiny_config.run.output_dir
    expected = final_bytes(run_dir)
    output = f"run.output_dir={tmp_path / 'stopped'}"
    with pytest.raises(Stopped):
        run_training([*settings, output], stop_before_step=6)
    run_training([*settings, output], resume="latest")
    assert final_bytes(tmp_path / "stopped") == expected

    fresh = Session(override_config(tiny_config, settings), one_process).load()
    for name, trained in final_adapter(run_dir).items():
        assert not torch.equal(trained, fresh.built.initial_values[name]), name


@EVERY
def test_validation_logs_what_has_a_meaning(
    run_training: Train, tiny_config: Config, one_process: World, settings: list[str]
) -> None:
    run_training([*settings, "training.num_epochs=1"])
    run_dir = tiny_config.run.output_dir
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line if name.startswith("attention/")}
    way = open_checkpoint(run_dir).config.kv_modulation
    own = {
        "concat": {"attention/mass", "attention/prefix_key_norm"},
        "decoupled": {"attention/image_output", "attention/art_output", "attention/prefix_value_norm"},
        "film": {"attention/key_scale", "attention/value_scale", "attention/value_shift"},
        "prompt": set(),
    }
    wanted = {"attention/query_scale", "attention/query_shift"} if way.film == "queries" else own[way.injection]
    assert wanted <= logged
    others = set().union(*own.values(), {"attention/query_scale"}) - wanted - {"attention/prefix_key_norm"}
    assert not (others - own["decoupled"]) & logged
    assert ("attention/gate/layer_1" in logged) == (way.gate_per != "model")
    assert "attention/image_key_norm" in logged

    session = Session(override_config(tiny_config, settings), one_process, ["val"]).load(open_checkpoint(run_dir))
    (seen,) = attention_of(session.model, session.questions["val"], [0])
    assert (seen.mass is not None) == (way.injection == "concat") == (mass_over_paintings([seen]) is not None)
    assert looks_of(seen, True).captions()[0].startswith("prefix on")
    assert seen.map_on.sum() == pytest.approx(1) == seen.map_off.sum()
    assert (seen.map_on == seen.map_off).all() == (way.injection == "prompt")


@EVERY
def test_ablations_answered_together_are_each_alone_and_off_is_the_control(
    tiny_config: Config, one_process: World, settings: list[str]
) -> None:
    """The way off goes through one packed batch beside the others, whose paintings may have more visual tokens."""

    def answered(session: Session, ablations: Sequence[Ablation]) -> list[Answered]:
        questions = _with_choices(session, session.questions["val"], _candidates("train", tiny_config.dataset))
        return answer_under(session.model, questions, answering_settings(tiny_config), one_process, ablations)

    session = Session(override_config(tiny_config, settings), one_process, ["val"]).load()
    open_up(session.model)
    with torch.no_grad():  # an untrained EfficientNet tells hardly one painting from another
        for name, parameter in session.model.named_trainables().items():
            if name.endswith(".0.weight") and not name.startswith("qformer."):
                parameter.mul_(300)
    together = answered(session, ALL_ABLATIONS)
    control = Session(override_config(tiny_config, ["kv_modulation.enabled=false"]), one_process, ["val"]).load()
    expected = {one: answered(session, [one])[0] for one in ALL_ABLATIONS}
    expected[Ablation("off")] = answered(control, [Ablation("off")])[0]
    for ablation, found in zip(ALL_ABLATIONS, together, strict=True):
        assert found.texts == expected[ablation].texts
        # fp32, log-likelihoods down to -36; the worst seen is 4e-6.
        np.testing.assert_allclose(found.log_likelihoods, expected[ablation].log_likelihoods, rtol=0, atol=1e-5)
    for one, other in itertools.combinations(together, 2):
        assert np.abs(np.array(one.log_likelihoods) - np.array(other.log_likelihoods)).max() > 1e-4


def test_an_adapter_of_one_way_is_refused_by_another_of_the_same_shapes(
    run_training: Train, tiny_config: Config, one_process: World
) -> None:
    with pytest.raises(Stopped):
        run_training(stop_before_step=6)
    message = r'was trained with kv_modulation.injection="concat", now "decoupled"; the weights would not mean the same'
    with pytest.raises(UserError, match=message):
        run_training(["kv_modulation.injection=decoupled"], resume="latest")
    checkpoint = open_checkpoint(tiny_config.run.output_dir)
    other = override_config(tiny_config, ["kv_modulation.injection=decoupled"])
    with pytest.raises(UserError, match=message):
        Session(other, one_process).load(checkpoint)


@pytest.mark.parametrize("settings", [WAYS["prompt"][:1], WAYS["film"][:2]], ids=["prompt", "film"])
def test_replayed_graphs_train_to_the_same_weights(
    run_training: Train, tiny_config: Config, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    settings = [*settings, "training.num_epochs=3", "training.gradient_accumulation_steps=2"]
    run_training(settings)
    recorders = rerunning(monkeypatch)
    output = tmp_path / "replayed"
    run_training([*settings, f"run.output_dir={output}"])
    assert [recorder.replays > recorder.records > 0 for recorder in recorders] == [True, True]
    before, after = final_adapter(tiny_config.run.output_dir), final_adapter(output)
    # Paintings are filled up, and products of more of them round otherwise.
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 4e-5
    assert np.isfinite([float(one.abs().max()) for one in after.values()]).all()
