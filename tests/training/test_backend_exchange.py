"""What one backend trained, the other takes up: an adapter for questions, a run to go on with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from artkv.api import load_model
from artkv.config import Config, override_config
from artkv.errors import UserError
from artkv.run_folder.checkpoint import open_checkpoint
from tests.training_runs import Stopped, Train, final_adapter

BACKENDS = ["transformers", "lavis"]
OTHER = dict(zip(BACKENDS, reversed(BACKENDS), strict=True))
EVERYTHING = ["trainable.lora.targets=[qformer, opt]", "trainable.lora.rank=2", "kv_modulation.gate=zero"]
QUESTIONS = ["What is thing 0?", "What is thing 1?", "Who painted this picture?"]


def pictures(number: int) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(number)]


@pytest.mark.parametrize("trained_on", BACKENDS)
def test_an_adapter_answers_alike_on_the_other_backend(
    run_training: Train, tiny_config: Config, trained_on: str
) -> None:
    # A learning rate that moves the answers away from those of the untrained model.
    settings = [*EVERYTHING, "training.learning_rate=3.0e-3", "training.num_epochs=1"]
    run_training([*settings, f"model.backend={trained_on}"])
    answers = {}
    for backend in BACKENDS:
        config = override_config(tiny_config, [*settings, f"model.backend={backend}"])
        loaded = load_model(config, tiny_config.run.output_dir)  # refused if the frozen hash differed
        answers[backend] = [loaded.ask(picture, QUESTIONS) for picture in pictures(4)]
    assert answers["lavis"] == answers["transformers"]
    assert len({answer for each in answers["lavis"] for answer in each}) > 1
    untrained = load_model(override_config(tiny_config, [*settings, "model.backend=lavis"]))
    assert [untrained.ask(picture, QUESTIONS) for picture in pictures(4)] != answers["lavis"]


@pytest.mark.parametrize("first", BACKENDS)
def test_a_run_goes_on_with_the_other_backend(
    run_training: Train, tiny_config: Config, tmp_path: Path, first: str
) -> None:
    run_training([*EVERYTHING, f"model.backend={first}"])
    output = f"run.output_dir={tmp_path / 'changed'}"
    with pytest.raises(Stopped):
        run_training([*EVERYTHING, f"model.backend={first}", output], stop_before_step=9)
    progress = run_training([*EVERYTHING, f"model.backend={OTHER[first]}", output], resume="latest")
    assert progress.step == 18
    whole, changed = final_adapter(tiny_config.run.output_dir), final_adapter(tmp_path / "changed")
    assert whole.keys() == changed.keys()
    start = open_checkpoint(tiny_config.run.output_dir / "best").adapter()

    def flat(state: dict[str, Tensor]) -> Tensor:
        # Without key biases: their gradient is rounding alone, and Adam makes whole steps of it.
        return torch.cat([state[name].flatten() for name in sorted(state) if not name.endswith("key.bias")])

    # Random weights never answer right, so the first epoch's end, where the backend changes, is the best.
    way, difference = flat(whole) - flat(start), flat(whole) - flat(changed)
    # fp32, nine steps on the one backend and on the other; the worst seen is 1.5e-6.
    assert 0 < difference.norm() < 1e-4 * way.norm()


def test_an_adapter_beside_other_frozen_weights_is_refused(
    run_training: Train, tiny_config: Config, tiny_world: Path, tmp_path: Path
) -> None:
    run_training(["model.backend=lavis", "training.num_epochs=1"])
    other = tmp_path / "other_blip2"
    shutil.copytree(tiny_world / "blip2", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 0x20  # the last byte is the exponent of some frozen fp32 value, which stays finite
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="was trained on other frozen weights"):
        load_model(override_config(tiny_config, [f"model.blip2={other}"]), tiny_config.run.output_dir)
