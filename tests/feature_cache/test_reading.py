"""Records get into batches whole and in order, whoever reads them; models compute with them as they would without."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artkv.api import load_model
from artkv.batch import PaintingFeatures, PaintingViews
from artkv.config import Config, override_config
from artkv.datasets.batches import AnsweringBatchMaker, answering_loader
from artkv.datasets.order import plan_evaluation
from artkv.datasets.packing import PackingSettings
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenized_table import tokenize_table
from artkv.distributed import single_process
from artkv.errors import RunFailed, UserError
from artkv.evaluation.answering import (
    ALL_ABLATIONS,
    Ablation,
    _shown,
    _visual_tokens,
    all_ablations,
    answer_questions,
    answer_under,
    answering_settings,
)
from artkv.feature_cache import reading
from artkv.feature_cache.reading import CachedPaintings
from tests.feature_cache.conftest import prepare, tables_of


@pytest.fixture
def table(config: Config) -> QuestionTable:
    return tables_of(config, "train")[0]


@pytest.fixture
def paintings(config: Config, table: QuestionTable) -> CachedPaintings:
    return prepare(config).paintings(table)


def test_records_come_in_the_order_asked_for(paintings: CachedPaintings) -> None:
    in_order = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    assert len({tuple(record.flatten()[:4].tolist()) for record in in_order.image_features}) == 12
    picked, art_picked = np.array([7, 0, 7, 11]), np.array([1, 2, 3, 4])
    features = paintings.load(picked, art_picked, pin_memory=False)
    assert torch.equal(features.image_features, in_order.image_features[picked])
    assert torch.equal(features.art_features[0], in_order.art_features[0][art_picked])


def test_bfloat16_records(config: Config, table: QuestionTable) -> None:
    bf16 = override_config(config, ["model.dtype=bfloat16"])
    features = prepare(bf16).paintings(table).load(np.arange(12), np.arange(12), pin_memory=False)
    fp32 = override_config(config, [f"frozen.feature_cache={config.frozen.feature_cache}_fp32"])
    exact = prepare(fp32).paintings(table).load(np.arange(12), np.arange(12), pin_memory=False)
    assert features.image_features.dtype == torch.bfloat16
    assert torch.equal(features.art_features[0], exact.art_features[0])  # the EfficientNet computes in fp32 always
    # Two layers in bf16, values to 3: worst seen 0.023.
    torch.testing.assert_close(features.image_features.float(), exact.image_features, rtol=0, atol=0.1)


def test_few_files_are_open_at_a_time(paintings: CachedPaintings, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    paintings.close()
    monkeypatch.setattr(reading, "_MAX_OPEN_FILES", 1)
    open_before = len(os.listdir("/proc/self/fd"))
    features = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    assert len(os.listdir("/proc/self/fd")) == open_before + 2
    assert torch.equal(features.image_features, expected.image_features)
    paintings.close()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_all_records_share_what_may_be_open(
    config: Config, table: QuestionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = prepare(config)
    together = [cached.paintings(table) for _ in range(3)]  # as of three tables
    open_before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(reading.resource, "getrlimit", lambda kind: (4 * 12, 4 * 12))
    for _ in range(3):
        together.append(together.pop(0))
        together[0].load(np.arange(12), np.arange(12), pin_memory=False)
    assert len(os.listdir("/proc/self/fd")) == open_before + 2 * 3 * 2
    del together[1:]
    together[0].load(np.arange(12), np.arange(12), pin_memory=False)
    assert len(os.listdir("/proc/self/fd")) == open_before + 2 * 4  # all shards that there are


def test_where_the_system_allows_no_more_files_older_ones_are_closed(
    paintings: CachedPaintings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    paintings.close()
    true_open = os.open
    open_before = len(os.listdir("/proc/self/fd"))
    spare = 1

    def limited(path: Any, *arguments: Any) -> int:
        if len(os.listdir("/proc/self/fd")) > open_before + spare:
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return true_open(path, *arguments)

    monkeypatch.setattr(os, "open", limited)
    records = paintings._vit
    assert torch.equal(records.load(np.arange(12), False), expected.image_features)
    records.close()
    spare = -1
    with pytest.raises(OSError, match="Too many open files"):  # whose remedy the command line knows
        records.load(np.arange(12), False)


def test_shard_cut_off_while_training_is_named(paintings: CachedPaintings, config: Config) -> None:
    for path in config.frozen.feature_cache.glob("*/shards/*"):  # type: ignore[union-attr]
        os.truncate(path, 1200)
    with pytest.raises(UserError, match="is shorter than it was at the start; delete this file"):
        paintings.load(np.arange(12), np.arange(12), pin_memory=False)


def test_file_that_nfs_has_lost_is_opened_again_once(
    paintings: CachedPaintings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    stale = set(paintings._vit._files.values())
    true_preadv = os.preadv

    def preadv(file: int, buffers: list, offset: int) -> int:
        if file in stale:
            stale.remove(file)  # a new one may have its number
            raise OSError(errno.ESTALE, "Stale file handle")
        return true_preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    found = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    assert torch.equal(found.image_features, expected.image_features)
    assert not stale

    def never(*arguments: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "preadv", never)
    with pytest.raises(RunFailed, match=r"\.safetensors: cannot be read any more \(Stale file handle\); look at"):
        paintings.load(np.arange(12), np.arange(12), pin_memory=False)


def test_a_lost_file_for_which_there_is_no_room_any_more_is_no_fault_of_the_disk(
    paintings: CachedPaintings, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = paintings._vit
    records.load(np.arange(1), False)

    def lost(*_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    def refuse(path: object, *_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(os, "preadv", lost)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):  # whose remedy the command line knows
        records.load(np.arange(1), False)


def test_several_threads_read_the_same(paintings: CachedPaintings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few open files that threads close each other's."""
    expected = paintings.load(np.arange(12), np.arange(12), pin_memory=False)
    paintings.close()
    monkeypatch.setattr(reading, "_MAX_OPEN_FILES", 1)
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda order: paintings.load(order, order, pin_memory=False), orders))
    for order, features in zip(orders, found, strict=True):
        assert torch.equal(features.image_features, expected.image_features[order])
        assert torch.equal(features.art_features[0], expected.art_features[0][order])


@pytest.mark.parametrize("ablations", [*([one] for one in ALL_ABLATIONS), ALL_ABLATIONS], ids=str)
def test_ablations_see_the_same_with_and_without(
    config: Config, table: QuestionTable, ablations: list[Ablation]
) -> None:
    cached = prepare(config).paintings(table)
    uncached = override_config(config, ["frozen.feature_cache=null"])
    model = load_model(uncached, device="cpu")
    settings = replace(answering_settings(config), seed=3)
    tokenized, _ = tokenize_table(table, model.model.backbone.tokenizer, config.dataset.prompt)
    sources = (cached, DecodedPictures(table, model.transform))
    cached_questions, decoded_questions = (QuestionSet(table, tokenized, source) for source in sources)
    shown = _shown(model.model, ablations, table.num_paintings, 3)
    plan, packing = plan_evaluation(table.painting_of_row, 4), PackingSettings(6, 40)
    for with_cache, without in zip(
        *(
            answering_loader(AnsweringBatchMaker(questions, shown, packing, 8), plan, single_process(), 1)
            for questions in (cached_questions, decoded_questions)
        ),
        strict=True,
    ):
        assert with_cache.rows == without.rows
        for features, views in ((with_cache.paintings, without.paintings), (with_cache.blank, without.blank)):
            assert (features is None) == (views is None)
            if views is not None:
                assert isinstance(features, PaintingFeatures)
                assert isinstance(views, PaintingViews)
                expected = model.model.encode(views)
                # fp32 in batches of another shape; worst seen 7e-9, but kernels of other machines may round more.
                torch.testing.assert_close(features.image_features, expected.image_features, rtol=0, atol=1e-5)
                torch.testing.assert_close(features.art_features, expected.art_features, rtol=0, atol=1e-5)
        assert (with_cache.other_art is None) == (without.other_art is None)
        if without.other_art is not None:
            expected_art = model.model.encode_art(without.other_art)
            torch.testing.assert_close(with_cache.other_art, expected_art, rtol=0, atol=1e-5)
    answers = [
        [answered.texts for answered in answer_under(model.model, questions, settings, single_process(), ablations)]
        for questions in (cached_questions, decoded_questions)
    ]
    assert answers[0] == answers[1]
    # Together they are what each is by itself.
    assert answers[0] == [
        answer_questions(model.model, cached_questions, settings, single_process(), ablation) for ablation in ablations
    ]


def test_masked_encoders_say_the_same_of_the_cache_and_of_pictures(config: Config) -> None:
    assert config.efficientnet is not None
    weights = f"architecture: test_efficientnet, checkpoint: {config.efficientnet.checkpoint}, image_size: 64"
    encoders = f"[{{name: a, {weights}}}, {{name: b, {weights}, read: map, size: 2}}]"
    both = override_config(config, ["efficientnet=null", f"art_encoders={encoders}", "kv_modulation.injection=prompt"])
    table = tables_of(both, "train")[0]
    session = load_model(override_config(both, ["frozen.feature_cache=null"]), device="cpu")
    model, ablations = session.model, all_ablations(both)
    with torch.no_grad():
        for name, parameter in model.named_trainables().items():
            if parameter.ndim > 1 and not name.startswith("qformer."):
                parameter.mul_(30)
    tokenized, _ = tokenize_table(table, model.backbone.tokenizer, both.dataset.prompt)
    found = []
    for source in (prepare(both).paintings(table), DecodedPictures(table, session.transform)):
        questions = QuestionSet(table, tokenized, source)
        packing = PackingSettings(model.num_visual_tokens, model.backbone.language_model_width)
        make = AnsweringBatchMaker(questions, _shown(model, ablations, table.num_paintings, 3), packing, 8)
        batches = answering_loader(make, plan_evaluation(table.painting_of_row, 4), single_process(), 1)
        with torch.no_grad():
            found.append(torch.cat([_visual_tokens(model, batch, ablations) for batch in batches]))
    # fp32 in batches of another shape.
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_ask_loads_the_encoders_and_writes_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from artkv.models.backbone.blip2_backbone import Blip2Backbone

    prepare(config)
    picture = tables_of(config, "val")[0].painting_paths[0]
    asked = ["What is thing 0?", "Who?"]
    expected = load_model(override_config(config, ["frozen.feature_cache=null"]), device="cpu").ask(picture, asked)
    loaded: list[str] = []
    true_place = Blip2Backbone._place_blocks

    def place(self: Blip2Backbone, stack_name: str, *others: Any) -> None:
        loaded.append(stack_name)
        true_place(self, stack_name, *others)

    monkeypatch.setattr(Blip2Backbone, "_place_blocks", place)
    before = {path: path.stat().st_mtime_ns for path in Path(config.frozen.feature_cache).rglob("*")}  # type: ignore[arg-type]
    model = load_model(config, device="cpu")
    assert loaded == ["opt", "vit"]
    assert model.ask(picture, asked) == expected
    assert model.ask(picture, asked) == expected
    assert not any(p.is_meta for p in model.model.backbone.named_parameters().values())
    assert not any(p.requires_grad for n, p in model.model.backbone.named_parameters().items() if "vision_model" in n)
    assert before == {path: path.stat().st_mtime_ns for path in Path(config.frozen.feature_cache).rglob("*")}  # type: ignore[arg-type]


def test_streamed_vit_fills_the_same_cache(config: Config, bf16_folder: Path) -> None:
    """Its masters are bfloat16, so of weights that are: then records are bit-identical."""
    from tests.feature_cache.conftest import files_of

    resident = override_config(config, [f"model.blip2={bf16_folder}", "model.dtype=bfloat16"])
    streamed = override_config(
        resident, ["frozen.vit=stream", f"frozen.feature_cache={config.frozen.feature_cache}_streamed"]
    )
    prepare(resident)
    prepare(streamed)
    assert files_of(resident) == files_of(streamed)
    picture = tables_of(config, "val")[0].painting_paths[0]
    model = load_model(streamed, device="cpu")
    assert model.ask(picture, "Who?") == load_model(resident, device="cpu").ask(picture, "Who?")
    assert model.model.backbone.streamed["vit"].total_loads > 0
