"""A config, opened once: the data of its splits, and its model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from typing_extensions import Self

from artkv.batch import PaintingViews
from artkv.config import Config, DatasetConfig
from artkv.datasets.checked_tables import read_checked_tables
from artkv.datasets.packing import PackingSettings
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.pictures import PaintingTransform, open_picture, upright_rgb
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.records import Problem, format_problems
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import encode_prompt
from artkv.datasets.tokenized_table import TokenizedTable, tokenize_table, too_long_questions
from artkv.distributed import World
from artkv.errors import UserError
from artkv.feature_cache import CachedTables, CacheSettings, decoded_before, prepare_features
from artkv.models.assembly import BuiltModel, build_model
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.frozen_encoders import open_frozen_encoders, painting_transform
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.run_folder.checkpoint import Checkpoint

SPLITS = ("train", "val", "test")


class Session:
    """A config with the data of some splits and, once loaded, the model and the splits' questions.

    All ranks make it alike, and call `fill_cache` and `load` alike; these raise `UserError` on all of them for what is
    wrong on any.

    tables: the checked CSV file of each split. `load` adds the rest. built: the model with what a run needs to know of
    its weights. transform: makes the views that the encoders want of a picture. questions: of each split, what batches
    are made of.
    """

    built: BuiltModel
    transform: PaintingTransform
    questions: dict[str, QuestionSet]

    def __init__(self, config: Config, world: World, splits: Sequence[str] = ()) -> None:
        """Reads the splits' CSV files and checks every row and picture; with none of them nothing is read."""
        self.config = config
        self.world = world
        self.tables: dict[str, QuestionTable] = {}
        if splits:
            paths = world.together(lambda: [csv_path(config.dataset, split) for split in splits])
            image_root = world.together(lambda: pictures_folder(config.dataset))
            tables = read_checked_tables(paths, image_root, world, decoded_before(config.frozen.feature_cache))
            self.tables = dict(zip(splits, tables, strict=True))

    @property
    def model(self) -> KVModulatedBlip2:
        """The `torch.nn.Module` whose parameters are what trains, in the compute dtype."""
        return self.built.model

    @property
    def cache_settings(self) -> CacheSettings:
        """How the config has features cached; `UserError` where it does not."""
        config = self.config
        folder = config.frozen.feature_cache
        if folder is None:
            raise UserError("frozen.feature_cache is not set; give a folder, with --set frozen.feature_cache=FOLDER")
        return CacheSettings(
            folder,
            has_art=config.kv_modulation.enabled,
            knows_art_encoder=config.efficientnet.checkpoint is not None,
            decoders=config.dataset.workers,
            open_encoders=lambda with_art, world: open_frozen_encoders(config, with_art, world),
        )

    def fill_cache(self, after_each_batch: Callable[[bool], None] = lambda has_shards: None) -> CachedTables:
        """Computes what `frozen.feature_cache` lacks of the splits' pictures; see `prepare_features`."""
        settings = self.world.together(lambda: self.cache_settings)
        return prepare_features(settings, list(self.tables.values()), self.world, after_each_batch)

    def load(
        self, checkpoint: Checkpoint | None = None, after_each_batch: Callable[[bool], None] = lambda has_shards: None
    ) -> Self:
        """Fills the feature cache if there is to be one, loads the model, and makes the splits' questions of it.

        checkpoint: whose trained weights the model gets; None: it has those that training starts from.
        after_each_batch: see `prepare_features`.
        """
        config, world = self.config, self.world
        features = None
        if self.tables and config.frozen.feature_cache is not None:
            features = self.fill_cache(after_each_batch)
        self.built = world.together(lambda: build_model(config, world))
        if checkpoint is not None:
            world.together(lambda: self._load_trained(checkpoint))
        backbone = self.model.backbone
        self.transform = painting_transform(backbone.image_settings, config.efficientnet)
        tokenized = world.together(lambda: self._tokenize_all(backbone))
        self.questions = {
            split: QuestionSet(
                table,
                tokenized[split],
                DecodedPictures(table, self.transform) if features is None else features.paintings(table),
            )
            for split, table in self.tables.items()
        }
        return self

    def tokenize(self, table: QuestionTable, backbone: Blip2Backbone) -> tuple[TokenizedTable, list[Problem]]:
        """The table's token ids, and a problem for each row that cannot be tokenised or is too long."""
        tokenized, problems = tokenize_table(table, backbone.tokenizer, self.config.dataset.prompt)
        problems += too_long_questions(tokenized, table, backbone.num_query_tokens, backbone.max_positions)
        return tokenized, sorted(problems, key=lambda problem: problem.line)

    def ask(
        self, picture: str | Path | Image.Image, question: str | Sequence[str], use_prefix: bool = True
    ) -> str | list[str]:
        """The answer to a question about a picture, or a list of answers to a list of questions."""
        questions = [question] if isinstance(question, str) else list(question)
        opened = upright_rgb(picture) if isinstance(picture, Image.Image) else open_picture(Path(picture))
        vit_view, art_view = self.transform(opened)
        device = self.world.device
        features = self.model.encode(PaintingViews(vit_view[None], art_view[None]).to(device))
        backbone = self.model.backbone
        prompts = [encode_prompt(backbone.tokenizer, self.config.dataset.prompt, text) for text in questions]
        for text, prompt in zip(questions, prompts, strict=True):
            if (needed := backbone.num_query_tokens + len(prompt) + 1) > backbone.max_positions:
                raise UserError(
                    f"the question {text[:40]!r}... needs {needed} positions with the first token of its answer, the "
                    f"language model has {backbone.max_positions}; shorten it"
                )
        packing = PackingSettings(backbone.num_query_tokens, backbone.language_model_width)
        packed = pack_prompts(prompts, [0] * len(prompts), backbone.tokenizer.pad_token_id, packing).to(device)
        with torch.no_grad():
            visual_tokens = self.model.visual_tokens(features, use_prefix)
            answers = self.model.generate_answers(visual_tokens, packed, self.config.evaluation.max_new_tokens)
        return answers[0] if isinstance(question, str) else answers

    def _load_trained(self, checkpoint: Checkpoint) -> None:
        """Gives the model a checkpoint's trained weights, once they are known to belong to it."""
        checkpoint.check_fits(self.config, self.built.initial_values)
        checkpoint.check_frozen_weights(self.built.frozen_hash)
        self.model.load_trainables(checkpoint.adapter())
        self.built = replace(self.built, initial_values={})  # of no use any more, and as large as what trains

    def _tokenize_all(self, backbone: Blip2Backbone) -> dict[str, TokenizedTable]:
        tokenized, problems = {}, []
        for split, table in self.tables.items():
            tokenized[split], wrong = self.tokenize(table, backbone)
            problems += wrong
        if problems:
            raise UserError(format_problems(problems))
        return tokenized


def csv_path(dataset: DatasetConfig, split: str) -> Path:
    """The CSV file of a split; `UserError` if it is not set."""
    path: Path | None = getattr(dataset, split)
    if path is None:
        what = "the CSV file to train on" if split == "train" else "a CSV file"
        raise UserError(f"dataset.{split} is not set; give {what}, as with --set dataset.{split}=PATH")
    return path


def training_splits(config: Config) -> list[str]:
    """The splits that a training reads; `UserError` if it is to validate and has nothing to validate on."""
    if not config.evaluation.each_epoch:
        return ["train"]
    if config.dataset.val is None:
        raise UserError("dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false")
    return ["train", "val"]


def pictures_folder(dataset: DatasetConfig) -> Path:
    """`dataset.image_root`; `UserError` if it is not set."""
    if dataset.image_root is None:
        raise UserError("dataset.image_root is not set; give the folder that holds the pictures")
    return dataset.image_root
