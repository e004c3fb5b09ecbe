"""A config, opened once: the data of its splits, and its model."""

import gc
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from typing_extensions import Self

from artkv.batch import PaintingFeatures, PaintingViews
from artkv.config import Config, DatasetConfig
from artkv.datasets.checked_tables import read_checked_tables
from artkv.datasets.decoding import upright_rgb
from artkv.datasets.kept_tokens import kept_tokens
from artkv.datasets.packing import PackingSettings
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.pictures import PaintingTransform
from artkv.datasets.problems import Problem, format_problems, quoted
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import QuestionTable
from artkv.datasets.table_form import TableForm
from artkv.datasets.tokenization import encode_prompt
from artkv.datasets.tokenized_table import TokenizedTable, too_long_questions
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.attention import PaintingAttention, attention_of_features
from artkv.feature_cache import (
    CachedTables,
    CacheSettings,
    Location,
    PictureReading,
    choose_location,
    decoded_before,
    decoded_below,
    features_folder,
    features_root,
    prepare_features,
)
from artkv.models.assembly import BuiltModel, build_model, num_visual_tokens, too_many_prefix_tokens
from artkv.models.backbone.backends import (
    dtype_note,
    fetch_files,
    files_opened_once,
    open_backbone,
    resolve_dtype,
)
from artkv.models.backbone.blip2_backbone import RESIDENT, Blip2Backbone
from artkv.models.cuda_recorder import give_back_unused
from artkv.models.frozen_encoders import open_frozen_encoders, painting_transform
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2, LikelyAnswer
from artkv.models.opt.packed_sequences import paintings_together
from artkv.planning.batch_shape import BatchShape, largest_batch
from artkv.planning.device import Device, shared_device
from artkv.planning.gpus import gpu_of_device
from artkv.planning.placement import ANSWERING, Placement, Use, is_settled, place, place_unasked
from artkv.planning.prediction import Predictor, record_bytes
from artkv.planning.shapes import read_blip2_config
from artkv.planning.shared_beginnings import largest_packed_batch, with_shared_beginnings
from artkv.reading import is_blank
from artkv.run_folder.checkpoint import Checkpoint

# A file's path, a decoded picture, or the features that `Session.encode` made of either, of one painting.
Picture: TypeAlias = str | Path | Image.Image | PaintingFeatures

# A question that somebody asks, with its answer, longer than usual; the page has it answered without the prefix too.
_ASKED = BatchShape(paintings=1, questions=1, text_tokens=64, answered_at_once=2)


class Session:
    """A config with the data of some splits and, once loaded, the model and the splits' questions.

    All ranks make it alike, and call `fill_cache` and `load` alike; these raise `UserError` on all of them for what is
    wrong on any.

    config: as it was written. tables: the checked CSV file of each split. placement: the settings that the model is
    built by; nothing of them is auto once it is loaded. `load` adds the rest. built: the model with what a run needs to
    know of its weights. transform: makes the views that the encoders want of a picture. questions: of each split, what
    batches are made of.
    """

    built: BuiltModel
    transform: PaintingTransform
    questions: dict[str, QuestionSet]

    def __init__(self, config: Config, world: World, splits: Sequence[str] = ()) -> None:
        """Reads the splits' CSV files and checks every row and picture; with none of them nothing is read."""
        self.config = config
        self.world = world
        self.tables: dict[str, QuestionTable] = {}
        self.placement = Placement(config)
        self._features: Location | None = None
        self._device: Device | None = None  # as it is before anything is loaded
        self._was_asked = False
        self._tokenized: dict[str, TokenizedTable] | None = None
        if splits:
            paths = world.together(lambda: [csv_path(config.dataset, split) for split in splits])
            image_root = world.together(lambda: pictures_folder(config.dataset))
            cache = config.frozen.feature_cache
            was_decoded = decoded_below(features_root()) if cache == "auto" else decoded_before(cache)
            form, most = TableForm.of(config.dataset), config.dataset.max_pixels
            tables = read_checked_tables(paths, image_root, world, was_decoded, most, form)
            self.tables = dict(zip(splits, tables, strict=True))

    @property
    def model(self) -> KVModulatedBlip2:
        """The `torch.nn.Module` whose parameters are what trains, in the compute dtype."""
        return self.built.model

    @property
    def features(self) -> Location:
        """Where `frozen.feature_cache` keeps the features of the splits' pictures; called on all ranks alike."""
        if self._features is None:
            self._features = self._locate_features()
        return self._features

    def _locate_features(self) -> Location:
        config, world = self.config, self.world
        if config.frozen.feature_cache != "auto":
            return Location(config.frozen.feature_cache, "frozen.feature_cache is not set")
        paths = [path for table in self.tables.values() for path in table.painting_paths]
        dtype = resolve_dtype(config.model.dtype, world.device)
        num_bytes = world.together(lambda: record_bytes(config, read_blip2_config(config.model), dtype))
        fetch_files(config.model, world)
        return choose_location(self._cache_settings(config, features_folder()), paths, num_bytes, world)

    @property
    def cache_settings(self) -> CacheSettings:
        """How the config has features cached; `UserError` where it does not. Called on all ranks alike."""
        folder, note = self.features
        if folder is None:
            raise UserError(f"{note}; give a folder, with --set frozen.feature_cache=FOLDER", on_all_ranks=True)
        return self._cache_settings(self.placement.config, folder)

    @staticmethod
    def _cache_settings(config: Config, folder: Path) -> CacheSettings:
        pictures = PictureReading(config.dataset.workers, config.dataset.max_pixels)
        return CacheSettings(folder, pictures, lambda world: open_frozen_encoders(config, world))

    def fill_cache(self, after_each_batch: Callable[[bool], None] = lambda has_shards: None) -> CachedTables:
        """Computes what the feature cache lacks of the splits' pictures; see `prepare_features`."""
        if self.placement.config.frozen.vit == "auto":  # no model is to be loaded
            self.placement = self.place(ANSWERING, _ASKED)
        settings = self.world.together(lambda: self.cache_settings)
        return prepare_features(settings, list(self.tables.values()), self.world, after_each_batch)

    def place(self, use: Use, batch: BatchShape | None = None) -> Placement:
        """Where weights and activations go: as the config says, and where it says auto as the device has room.

        Called on all ranks, before anything is loaded. batch: the largest; None: of the splits' questions.
        """
        config, world = self.config, self.world
        if not self._was_asked:
            if world.device.type == "cuda":  # an earlier model of this process may be in cycles, and in the cache
                gc.collect()
                give_back_unused()
            self._device, self._was_asked = shared_device(world), True
        device = self._device
        folder = self.features.folder if self.tables else None
        if device is None or is_settled(config):
            return place_unasked(config, folder, use)
        if use.accumulation is not None:
            accumulation = {"gradient_accumulation_steps": use.accumulation}
            config = config.model_copy(update={"training": config.training.model_copy(update=accumulation)})
        shape = batch or self._largest_batch()
        dtype = resolve_dtype(config.model.dtype, world.device)
        gpu = gpu_of_device(device)
        predictor = world.together(lambda: Predictor.of(config, dtype, shape, world.size, gpu, use.trains))
        return place(predictor, device, folder, use)

    @files_opened_once()
    def load(
        self,
        checkpoint: Checkpoint | None = None,
        after_each_batch: Callable[[bool], None] = lambda has_shards: None,
        use: Use = ANSWERING,
    ) -> Self:
        """Fills the feature cache if there is to be one, loads the model, and makes the splits' questions of it.

        checkpoint: whose trained weights the model gets; None: it has those that training starts from.
        after_each_batch: see `prepare_features`.
        """
        world = self.world
        self.placement = self.place(use)
        config, features = self.placement.config, None
        self._say([self.placement.note, dtype_note(self.config.model.dtype, world.device)])
        if config.frozen.feature_folder is not None and self.tables:
            features = self.fill_cache(after_each_batch)
        self.built = world.together(lambda: build_model(config, world))
        if checkpoint is not None:
            world.together(lambda: self._load_trained(checkpoint))
        backbone = self.model.backbone
        self.transform = painting_transform(backbone.image_settings, config)
        tokenized = self._tokenize_all(backbone)
        self.questions = {
            split: QuestionSet(
                table,
                tokenized[split],
                DecodedPictures(table, self.transform) if features is None else features.paintings(table),
            )
            for split, table in self.tables.items()
        }
        return self

    def unload(self) -> None:
        """Lets go of the model and of what was made of it, to load it anew; data and features stay."""
        del self.built
        self.questions = {}

    def tokenize(self, table: QuestionTable, backbone: Blip2Backbone) -> tuple[TokenizedTable, list[Problem]]:
        """The table's token ids, and a problem for each row that cannot be tokenised or is too long."""
        self._check_prompt(backbone)
        tokenized, problems = kept_tokens(table, backbone.tokenizer, self.config.dataset.prompt)
        num_visual = num_visual_tokens(self.config, backbone.num_query_tokens)
        problems += too_long_questions(tokenized, table, num_visual, backbone.max_positions)
        return tokenized, sorted(problems, key=lambda problem: problem.line)

    def _check_prompt(self, backbone: Blip2Backbone) -> None:
        """Raises `UserError` where the prompt leaves no room for a question of a token, and an answer with its end."""
        prompt = self.config.dataset.prompt
        num_visual = num_visual_tokens(self.config, backbone.num_query_tokens)
        tokens, room = len(encode_prompt(backbone.tokenizer, prompt, "")), backbone.max_positions - 3
        added = num_visual - backbone.num_query_tokens
        if num_visual + tokens > room >= backbone.num_query_tokens + tokens:
            left = room - backbone.num_query_tokens - tokens
            raise UserError(too_many_prefix_tokens(self.config, added, left), on_all_ranks=True)
        if num_visual + tokens > room:
            raise UserError(
                f"dataset.prompt = {quoted(prompt)}: has {tokens:,} tokens without a question, and the language model "
                f"leaves room for {max(0, room - num_visual):,} beside the picture's; shorten it",
                on_all_ranks=True,
            )

    def ask(self, picture: Picture, question: str | Sequence[str], use_prefix: bool = True) -> str | list[str]:
        """The answer to a question about a picture, or a list of answers to a list of questions."""
        questions = [question] if isinstance(question, str) else list(question)
        answers = [answer.text for answer in self.answers(picture, questions, use_prefix)]
        return answers[0] if isinstance(question, str) else answers

    def answers(self, picture: Picture, questions: Sequence[str], use_prefix: bool = True) -> list[LikelyAnswer]:
        """The answer to each of the questions about a picture, with what the model thinks of it."""
        return self.answers_by_prefix(picture, questions, [use_prefix])[0]

    def answers_by_prefix(
        self, picture: Picture, questions: Sequence[str], use_prefix: Sequence[bool]
    ) -> list[list[LikelyAnswer]]:
        """`answers` with the prefix on or off, for each of `use_prefix`; all in one batch."""
        backbone, device = self.model.backbone, self.world.device
        for text in questions:
            _check_question(text)
        self._check_prompt(backbone)
        prompts = [encode_prompt(backbone.tokenizer, self.config.dataset.prompt, text) for text in questions]
        num_seen = [self.model.visual_token_count(use) for use in use_prefix]
        most = backbone.max_positions - max(num_seen) - 1  # one for the first token of the answer
        for text, prompt in zip(questions, prompts, strict=True):
            if len(prompt) > most:
                raise UserError(
                    f"the question {quoted(text)} has {len(prompt):,} tokens with dataset.prompt around it, and the "
                    f"language model has room for {most:,}; shorten it"
                )
        packing = PackingSettings(max(num_seen), backbone.language_model_width)
        painting_index = [way for way in range(len(use_prefix)) for _ in prompts]
        packed = pack_prompts(
            prompts * len(use_prefix), painting_index, backbone.tokenizer.pad_token_id, packing, num_seen
        ).to(device)
        with torch.no_grad():
            features = self.encode(picture)
            visual = (self.model.visual_tokens(features, use) for use in use_prefix)
            visual_IKD = paintings_together(visual, max(num_seen))
        likely = self.model.generate_with_probability(visual_IKD, packed, self.config.evaluation.max_new_tokens)
        return [likely[way * len(prompts) : (way + 1) * len(prompts)] for way in range(len(use_prefix))]

    def attention(self, picture: Picture) -> PaintingAttention:
        """Where the Q-Former's query tokens look in a picture, with the prefix and without."""
        return attention_of_features(self.model, self.encode(picture))[0]

    def encode(self, picture: Picture) -> PaintingFeatures:
        """The frozen encoders' features of a picture, to be handed in its place where it is asked about again."""
        if isinstance(picture, PaintingFeatures):
            return picture
        if isinstance(picture, Image.Image):
            vit_view, art_views = self.transform(upright_rgb(picture))
        else:
            vit_view, art_views = self.transform.views(Path(picture))
        views = PaintingViews(vit_view[None], tuple(view[None] for view in art_views))
        return self.model.encode(views.to(self.world.device))

    def _load_trained(self, checkpoint: Checkpoint) -> None:
        """Gives the model a checkpoint's trained weights, once they are known to belong to it."""
        checkpoint.check_fits(self.config, self.built.initial_values)
        checkpoint.check_frozen_weights(self.built.frozen_hash)
        self.model.load_trainables(checkpoint.adapter())
        self.built = replace(self.built, initial_values={})  # of no use any more, and as large as what trains

    def _say(self, notes: Sequence[str | None]) -> None:
        """The placement and what else is to be known of it, and where features come from if that was chosen too."""
        chosen = [note for note in notes if note]
        if self.tables and self.config.frozen.feature_cache == "auto":
            chosen.append(self.features.note)
        if chosen and self.world.is_main:
            print(f"artkv: {'; '.join(chosen)}", file=sys.stderr, flush=True)

    def _largest_batch(self) -> BatchShape:
        """Of the splits' questions; where there are none, one that somebody asks."""
        training = self.config.training
        if not self.tables:
            return _ASKED
        backbone = open_backbone(self.config.model, RESIDENT, self.world)
        tokenized = self._tokenize_all(backbone)
        split = next(iter(self.tables))  # to train on, where training is meant
        paintings, of_split, size = self.tables[split].painting_of_row, tokenized[split], training.batch_size
        largest = largest_batch(paintings, of_split.lengths, size, training.pack_questions)
        if training.pack_questions:
            num_visual = num_visual_tokens(self.config, backbone.num_query_tokens)
            most = largest_packed_batch(of_split, paintings, size, num_visual)
            largest = with_shared_beginnings(largest, most, num_visual)
        return replace(largest, longest_text=max(int(texts.lengths.max()) for texts in tokenized.values()))

    def _tokenize_all(self, backbone: Blip2Backbone) -> dict[str, TokenizedTable]:
        """The token ids of each split; called on all ranks, done once."""
        if self._tokenized is None:
            self._tokenized = self.world.together(lambda: self._tokenize_each(backbone))
        return self._tokenized

    def _tokenize_each(self, backbone: Blip2Backbone) -> dict[str, TokenizedTable]:
        tokenized, problems = {}, []
        for split, table in self.tables.items():
            tokenized[split], wrong = self.tokenize(table, backbone)
            problems += wrong
        if problems:
            raise UserError(format_problems(problems))
        return tokenized


def _check_question(text: str) -> None:
    """Raises `UserError` for a question that says nothing, or holds what is no text."""
    if is_blank(text):
        raise UserError(f"the question {quoted(text)} is empty; ask one, such as: Which style is this?")
    strange = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r"), None)
    if strange is not None:
        what = "bytes that are no UTF-8" if unicodedata.category(strange) == "Cs" else "a control character"
        raise UserError(f"the question {quoted(text)} holds {what} ({strange!r}); leave that out")


def csv_path(dataset: DatasetConfig, split: str) -> Path:
    """The CSV file of a split; `UserError` if it is not set."""
    path: Path | None = getattr(dataset, split)
    if path is None:
        what = "the CSV file to train on" if split == "train" else "a CSV file"
        raise UserError(f"dataset.{split} is not set; give {what}, as with --set dataset.{split}=PATH")
    return path


def training_splits(config: Config) -> list[str]:
    """The splits that a training reads; `UserError` if it is to validate and has nothing to validate on."""
    if not config.validates:
        return ["train"]
    if config.dataset.val is None:
        raise UserError("dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false")
    return ["train", "val"]


def pictures_folder(dataset: DatasetConfig) -> Path:
    """`dataset.image_root`; `UserError` if it is not set."""
    if dataset.image_root is None:
        raise UserError("dataset.image_root is not set; give the folder that holds the pictures")
    return dataset.image_root
