"""artkv from Python: a trained model that answers, and evaluations of it."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from artkv import __version__
from artkv.config import Config, DatasetConfig, load_config
from artkv.datasets.pictures import open_picture
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table_form import TableForm
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.evaluation.answering import (
    ALL_ABLATIONS,
    AS_TRAINED,
    Ablation,
    answer_under,
    answering_settings,
    check_ablations,
    score_answers,
    shuffled_painting_index,
)
from artkv.evaluation.attention import looks_of
from artkv.evaluation.choices import MOST_CANDIDATES, Candidates, choose, read_candidates, row_choices
from artkv.evaluation.extra_scores import extra_metrics
from artkv.evaluation.results import (
    COMPARISON,
    Answers,
    check_places,
    evaluation_folder,
    selection_note,
    write_results,
)
from artkv.evaluation.scores import Scores, score_choices
from artkv.files import check_writable, told, write_whole
from artkv.models.backbone.backends import resolve_dtype
from artkv.monitoring.cards import AnsweredQuestion, draw_card
from artkv.run_folder.checkpoint import Checkpoint
from artkv.session import Session, csv_path, pictures_folder
from artkv.sharing.fetching import open_shared
from artkv.sharing.hub_names import hub_name

_DRAWN_BY = "artkv ask"


def load_model(
    config: Config | str | Path | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    device: str | torch.device | None = None,
) -> Session:
    """A model that answers: `load_model(checkpoint="outputs/demo/best").ask("painting.jpg", "Which style is this?")`.

    Args:
        config: settings, or the path of their YAML file; None: those that the checkpoint was trained with. An id of
            the hub alone is the checkpoint's: `load_model("user/name")`.
        checkpoint: a checkpoint's folder, or a run's, or its `best` or `checkpoints/latest`, or an exported
            adapter, or an id of the hub such as `user/name`; None for the untrained model.
        device: by default the first CUDA device, or the CPU.

    Raises:
        UserError: if the checkpoint is damaged, was trained with other trainables or other frozen weights.
    """
    if checkpoint is None and isinstance(config, str) and hub_name(config) is not None:
        config, checkpoint = None, config
    trained = open_shared(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    if config is None:
        if trained is None:
            raise UserError("load_model: neither a config nor a checkpoint is given; give one, or both")
        config = trained.config
    elif not isinstance(config, Config):
        config = load_config(config)
    return Session(config, single_process(None if device is None else torch.device(device))).load(trained)


def evaluate(
    checkpoint: str | Path | Checkpoint,
    split: str = "val",
    ablations: Sequence[Ablation] = ALL_ABLATIONS,
    config: Config | None = None,
    world: World | None = None,
    choices: str | None = None,
) -> dict[str, Scores]:
    """Scores a checkpoint on a split under each ablation, and writes them below the run's `eval/`.

    A comparison of what is replaced there is removed.

    Called on all ranks, which share the questions. The result is by the ablation's name.
    config: the checkpoint's by default. world: this process alone by default. choices: what is chosen among by
    likelihood too: `train`, the training CSV's answers, or the path of a CSV file of candidates; see `read_candidates`.
    """
    world = world or single_process()
    given = checkpoint
    trained = given if isinstance(given, Checkpoint) else world.together(lambda: open_shared(given))
    config = config or trained.config
    check_ablations(ablations, config, str(trained.path))
    places = [evaluation_folder(trained.run_dir, split, ablation.name) for ablation in ablations]
    world.on_main(lambda: check_places(places))
    candidates = None if choices is None else world.together(lambda: _candidates(choices, config.dataset))
    session = Session(config, world, [split]).load(trained)
    questions, settings = session.questions[split], answering_settings(config)
    if candidates is not None:
        questions = world.together(lambda: _with_choices(session, questions, candidates))
        if world.is_main:
            print(f"artkv: {candidates.describe(list(questions.table.question_types))}", file=sys.stderr)
    names = ", ".join(ablation.name for ablation in ablations)
    bar = tqdm(
        total=len(questions), desc=f"{split}, prefix {names}", unit="question", disable=None if world.is_main else True
    )
    with bar:
        advance = partial(_advance, bar, world.size)
        # Nobody gives up, but ranks that are asked meet every few questions: at the end alone the fastest might wait
        # for the slowest for longer than `distributed.timeout_minutes`.
        answers_of_all = answer_under(session.model, questions, settings, world, ablations, advance, lambda: False)
    table, seed = questions.table, config.training.seed
    results: dict[str, Scores] = {}
    writes: list[Callable[[], None]] = []
    samples = config.evaluation.bootstrap_samples
    extras = extra_metrics(lambda text: print(f"artkv: {text}", file=sys.stderr) if world.is_main else None)
    for ablation, place, answered in zip(ablations, places, answers_of_all, strict=True):
        scores, chosen = score_answers(answered.texts, table, samples, seed, extras), None
        if candidates is not None:
            chosen = choose(candidates, table, answered.log_likelihoods)
            of_choices = score_choices(chosen, answered.texts, table, candidates.to_json(), samples, seed)
            scores = replace(scores, choices=of_choices)
        results[ablation.name] = scores
        if world.is_main:
            shown = {"checkpoint": trained.hub_id or str(trained.path), "split": split} | ablation.conditions
            source = shuffled_painting_index(table.num_paintings, seed) if ablation.prefix == "shuffled" else None
            written = Answers(table, answered.texts, pictures_folder(config.dataset), source, chosen)
            writes.append(partial(write_results, place, written, scores, shown | _conditions(session)))
    comparison = evaluation_folder(trained.run_dir, split, AS_TRAINED.name) / COMPARISON
    world.on_main(lambda: _replace(comparison, writes))
    if world.is_main and (note := selection_note(trained.run_dir, split, trained.path.name)):
        print(f"artkv: {note}", file=sys.stderr)
    return results


def _conditions(session: Session) -> dict[str, Any]:
    """How answers are computed, as far as they depend on it; what `auto` came to in its place."""
    config, frozen = session.config, session.placement.config.frozen
    quantised = [f"frozen.opt {frozen.opt}"] if frozen.opt in ("int8", "nf4") else []
    if frozen.storage == "int8" and "stream" in (frozen.opt, frozen.vit):
        quantised.append("frozen.storage int8")
    return {
        "dtype": str(resolve_dtype(config.model.dtype, session.world.device)).removeprefix("torch."),
        "quantised": quantised,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "prompt": config.dataset.prompt,
        "artkv": __version__,
    }


def _replace(comparison: Path, writes: Sequence[Callable[[], None]]) -> None:
    """Writes evaluations, and removes what compared those that were there."""
    with told(str(comparison), "remove it, and evaluate again"):
        comparison.unlink(missing_ok=True)
    for write in writes:
        write()


def _candidates(choices: str, dataset: DatasetConfig) -> Candidates:
    """What `evaluate` is to have chosen among."""
    if choices == "train":
        return read_candidates(csv_path(dataset, "train"), MOST_CANDIDATES, TableForm.of(dataset))
    return read_candidates(Path(choices))


def _with_choices(session: Session, questions: QuestionSet, candidates: Candidates) -> QuestionSet:
    backbone = session.model.backbone
    longest = backbone.max_positions - session.model.num_visual_tokens
    return replace(questions, choices=row_choices(candidates, questions, backbone.tokenizer, longest))


def draw_attention(session: Session, picture: Path | str, question: str, answer: str, file: Path) -> None:
    """Writes a PNG of the picture, of where the model looks in it with the prefix on and off, and of what it said."""
    check_drawing(file)
    looks = looks_of(session.attention(picture), session.model.has_prefix)
    opened = open_picture(Path(picture), max_pixels=session.config.dataset.max_pixels)
    card = Image.fromarray(draw_card(AnsweredQuestion(opened, question, None, answer, looks)))
    with told(str(file), "give another file"):
        write_whole(file, lambda temporary: card.save(temporary, format="PNG", pnginfo=_drawn_here()))


def check_drawing(file: Path) -> None:
    """Raises `UserError` unless `draw_attention` may write `file`."""
    if os.path.lexists(file) and not _is_own_drawing(file):
        raise UserError(f"--attention {file}: is there already, and no drawing of artkv ask; give another name")
    check_writable(file, f"--attention {file}")


def _drawn_here() -> PngInfo:
    """Says in a drawing what made it: it may be replaced by the next one, as no picture of the user's may."""
    info = PngInfo()
    info.add_text("Software", _DRAWN_BY)
    return info


def _is_own_drawing(file: Path) -> bool:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == _DRAWN_BY)
    except (OSError, ValueError, SyntaxError):
        return False


def cache(config: Config, splits: Sequence[str], world: World) -> str:
    """Computes what `frozen.feature_cache` lacks of the splits' pictures; called on all ranks. Returns a summary."""
    world.together(lambda: Session(config, world).cache_settings)
    named = [split for split in splits if getattr(config.dataset, split) is not None]
    if not named:
        world.together(lambda: csv_path(config.dataset, splits[0]))
    return Session(config, world, named).fill_cache().summary()


def _advance(bar: tqdm, world_size: int, questions: int) -> None:
    """Shows all ranks' questions by this rank's, which has its even share of them."""
    bar.update(min(questions * world_size, bar.total - bar.n))
