"""artkv from Python: a trained model that answers, and evaluations of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from artkv.batch import PaintingViews
from artkv.config import Config
from artkv.datasets.checked_tables import read_checked_tables
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.pictures import PaintingTransform, open_picture, upright_rgb
from artkv.datasets.tokenization import IGNORED_LABEL, collate_questions, encode_prompt
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.evaluation.answering import Ablation, answer_questions, answering_settings, score_answers, tokenize_checked
from artkv.evaluation.results import write_results
from artkv.evaluation.scores import Scores
from artkv.feature_cache import cache_settings, decoded_before, prepare_features
from artkv.frozen.host_blocks import Gather
from artkv.models.assembly import build_model
from artkv.models.backbone.backends import Together
from artkv.models.backbone.blip2_backbone import alone
from artkv.models.frozen_encoders import painting_transform
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.run_folder.checkpoint import (
    check_fits,
    check_same_frozen_weights,
    read_adapter,
    read_config,
    read_frozen_hash,
    resolve_checkpoint,
    run_dir_of,
)


@dataclass(frozen=True)
class LoadedModel:
    """A model with what it takes to ask it: `ask` for answers, `model` for anything else.

    model: the `torch.nn.Module` whose parameters are the trainables, in the compute dtype; its forward
    takes a `Batch` and gives the answers' loss.
    """

    model: KVModulatedBlip2
    transform: PaintingTransform
    config: Config
    device: torch.device

    def ask(
        self, picture: str | Path | Image.Image, question: str | Sequence[str], use_prefix: bool = True
    ) -> str | list[str]:
        """The answer to a question about a picture, or a list of answers to a list of questions."""
        questions = [question] if isinstance(question, str) else list(question)
        opened = upright_rgb(picture) if isinstance(picture, Image.Image) else open_picture(Path(picture))
        vit_view, art_view = self.transform(opened)
        features = self.model.encode(PaintingViews(vit_view[None], art_view[None]).to(self.device))
        tokenizer = self.model.backbone.tokenizer
        prompts = [encode_prompt(tokenizer, self.config.dataset.prompt, text) for text in questions]
        batch = collate_questions(
            [(ids, [IGNORED_LABEL] * len(ids)) for ids in prompts], [0] * len(prompts), 1.0, tokenizer.pad_token_id
        ).to(self.device)
        with torch.no_grad():
            visual_tokens = self.model.visual_tokens(features, use_prefix)
            answers = self.model.generate_answers(visual_tokens, batch, self.config.evaluation.max_new_tokens)
        return answers[0] if isinstance(question, str) else answers


def load_model(
    config: Config,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    gather: Gather = alone,
    together: Together = lambda action: action(),
) -> LoadedModel:
    """Builds the model of `config` and gives it a checkpoint's trained weights.

    Args:
        checkpoint: a checkpoint's folder, or a run's, or its `best` or `checkpoints/latest`, or an exported
            adapter; None for the untrained model.
        device: by default the first CUDA device, or the CPU.
        gather, together: those of `World` where several ranks load alike; those of a host share one copy of what
            streams.

    Raises:
        UserError: if the checkpoint is damaged, was trained with other trainables or other frozen weights.
    """
    device = torch.device(device) if device is not None else single_process().device
    built = build_model(
        config.model,
        config.efficientnet,
        config.kv_modulation,
        config.trainable,
        config.frozen,
        config.training.seed,
        device,
        config.training.activation_checkpointing,
        gather,
        together,
    )
    if checkpoint is not None:
        folder = resolve_checkpoint(Path(checkpoint))
        adapter = read_adapter(folder)
        check_fits(folder, read_config(folder), config, adapter, built.initial_values)
        check_same_frozen_weights(folder, read_frozen_hash(folder), built.frozen_hash)
        built.model.load_trainables(adapter)
    transform = painting_transform(built.model.backbone.image_settings, config.efficientnet)
    return LoadedModel(built.model, transform, config, device)


def evaluate(
    config: Config, checkpoint: str | Path, split: str, ablations: Sequence[Ablation], world: World
) -> dict[str, Scores]:
    """Scores a checkpoint on a split under each ablation, and writes them below the run's `eval/`.

    Called on all ranks, which share the questions. The result is by the ablation's name.
    """
    csv_path = getattr(config.dataset, split)
    if csv_path is None or config.dataset.image_root is None:
        missing = f"dataset.{split}" if csv_path is None else "dataset.image_root"
        raise UserError(f"{missing} is not set; add --set {missing}=PATH")
    image_root = config.dataset.image_root
    is_decodable = decoded_before(config.frozen.feature_cache)
    table = read_checked_tables([csv_path], image_root, world, is_decodable)[0]
    folder = world.together(lambda: resolve_checkpoint(Path(checkpoint)))
    features = None
    if config.frozen.feature_cache is not None:
        features = prepare_features(cache_settings(config), [table], world)
    loaded = world.together(lambda: load_model(config, folder, world.device, world.gather, world.together))
    settings = answering_settings(config.dataset, config.evaluation, config.training.seed)
    tokenized = world.together(lambda: tokenize_checked(loaded.model, [table], settings))[0]
    paintings = features.paintings(table) if features else DecodedPictures(table, loaded.transform)
    if not loaded.model.has_prefix and any(ablation.prefix == "shuffled" for ablation in ablations):
        raise UserError(
            f"{folder}: was trained with kv_modulation.enabled: false and has no prefix to shuffle; "
            "leave --prefix shuffled out",
            on_all_ranks=True,
        )
    results: dict[str, Scores] = {}
    for ablation in ablations:
        bar = tqdm(
            total=len(table), desc=f"{split}, prefix {ablation.name}", unit="question",
            disable=None if world.is_main else True,
        )  # fmt: skip
        with bar:
            answers = answer_questions(
                loaded.model, table, tokenized, paintings, settings, world, ablation,
                advance=partial(_advance, bar, world.size),
            )  # fmt: skip
        scores = score_answers(answers, table, config.evaluation.bootstrap_samples, config.training.seed)
        results[ablation.name] = scores
        if world.is_main:
            conditions = {"checkpoint": str(folder), "split": split} | vars(ablation)
            write_results(run_dir_of(folder) / "eval" / f"{split}-{ablation.name}", table, answers, scores, conditions)
    world.barrier()
    return results


def cache(config: Config, splits: Sequence[str], world: World) -> str:
    """Computes what `frozen.feature_cache` lacks of the splits' pictures; called on all ranks. Returns a summary."""
    settings = world.together(lambda: cache_settings(config))
    csv_paths = [path for path in (getattr(config.dataset, split) for split in splits) if path is not None]
    if not csv_paths or config.dataset.image_root is None:
        missing = " or ".join(f"dataset.{split}" for split in splits) if not csv_paths else "dataset.image_root"
        raise UserError(f"{missing} is not set; add --set {missing.split()[0]}=PATH", on_all_ranks=True)
    tables = read_checked_tables(csv_paths, config.dataset.image_root, world, decoded_before(settings.folder))
    return prepare_features(settings, tables, world).store.summary()


def _advance(bar: tqdm, world_size: int, questions: int) -> None:
    """Shows all ranks' questions by this rank's, which has its even share of them."""
    bar.update(min(questions * world_size, bar.total - bar.n))
