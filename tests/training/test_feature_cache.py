"""Runs that read features from a cache: the weights of runs without one, and encoders that stay on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from artkv.api import evaluate
from artkv.config import Config, override_config
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.evaluation.answering import ALL_ABLATIONS
from artkv.models.assembly import build_model
from tests.training_runs import Stopped, Train, final_adapter, final_bytes


def forbid_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails whoever loads the weights of either encoder, or decodes a picture."""

    def poisoned(*_: Any, **__: Any) -> None:
        raise AssertionError("an encoder was loaded or a picture decoded")

    monkeypatch.setattr("artkv.models.backbone.transformers_backend.TransformersBackbone.load_vit", poisoned)
    monkeypatch.setattr("artkv.models.frozen_encoders.load_art_encoder", poisoned)
    monkeypatch.setattr("artkv.models.assembly.load_art_encoder", poisoned)
    monkeypatch.setattr("artkv.datasets.painting_source.decoded", poisoned)
    monkeypatch.setattr("artkv.datasets.table.picture_damage", poisoned)
    monkeypatch.setattr("artkv.datasets.pictures.decoded", poisoned)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of the tiny world are remembered, young as they are."""
    monkeypatch.setattr("artkv.datasets.member_index.SETTLED_SECONDS", 0.0)


def test_first_use_fills_and_the_weights_are_those_without(
    run_training: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {name: tmp_path / name for name in ("uncached", "cached")}
    for name, output in outputs.items():
        cache = "null" if name == "uncached" else str(tmp_path / "features")
        run_training([f"run.output_dir={output}", f"frozen.feature_cache={cache}"])
    assert (
        "encoded 18 pictures with vit, test_efficientnet in " in capsys.readouterr().err
    )  # 12 and 5, and the blank one
    one, other = (final_adapter(output) for output in outputs.values())
    worst = max((one[name] - other[name]).abs().max().item() for name in one)
    # Art features of other batch shapes differ by 7e-9 here; after 18 steps of Adam at 1e-3 worst seen 2.8e-7.
    assert worst < 5e-6


def test_complete_cache_loads_no_encoder(
    run_training: Train, tiny_config: Config, one_process: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    settled: None,
) -> None:  # fmt: skip
    settings = [f"frozen.feature_cache={tmp_path / 'features'}"]
    run_training([*settings, f"run.output_dir={tmp_path / 'filling'}"])
    expected = final_bytes(tmp_path / "filling")
    forbid_encoders(monkeypatch)
    monkeypatch.setattr(
        "artkv.training.validation.stratified_rows", lambda *_: []
    )  # TensorBoard's pictures are decoded
    run_training([*settings, f"run.output_dir={tmp_path / 'again'}"])
    assert final_bytes(tmp_path / "again") == expected
    with pytest.raises(Stopped):
        run_training([*settings, f"run.output_dir={tmp_path / 'stopped'}"], stop_before_step=6)
    run_training([*settings, f"run.output_dir={tmp_path / 'stopped'}"], resume="latest")
    assert final_bytes(tmp_path / "stopped") == expected
    config = override_config(tiny_config, settings)
    scores = evaluate(tmp_path / "again", "val", ALL_ABLATIONS, config, one_process)
    assert len(scores) == 4


def test_first_weights_and_hash_do_not_depend_on_the_cache(tiny_config: Config, tmp_path: Path) -> None:
    built = [
        build_model(config, single_process(torch.device("cpu")))
        for config in (tiny_config, override_config(tiny_config, [f"frozen.feature_cache={tmp_path}"]))
    ]
    assert built[0].frozen_hash == built[1].frozen_hash
    assert built[0].initial_values.keys() == built[1].initial_values.keys()
    assert all((value == built[1].initial_values[name]).all() for name, value in built[0].initial_values.items())


def test_a_folder_that_is_no_cache_stops_the_run_before_its_folder_is_made(run_training: Train, tmp_path: Path) -> None:
    settings = [f"frozen.feature_cache={tmp_path / 'features'}"]
    (tmp_path / "features").mkdir()
    (tmp_path / "features/cache.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="a feature cache of format 2, not 3; give another folder, or delete"):
        run_training([*settings, f"run.output_dir={tmp_path / 'stale'}"])
    assert not (tmp_path / "stale").exists()


def test_share_of_waiting_for_data_is_logged(run_training: Train, tiny_config: Config) -> None:
    run_training()
    lines = (tiny_config.run.output_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    shares = [record["data_wait_share"] for record in records if record["kind"] == "train"]
    assert len(shares) == 10
    assert all(0 < share < 1 for share in shares)
