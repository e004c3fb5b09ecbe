"""Finds everything in config, environment, data and models that would stop a run."""

import os
from collections.abc import Callable, Mapping, Sequence

import torch

from artkv.config import Config
from artkv.config.dataset_schema import SPLITS
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.checked_tables import check_table
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.shared_pictures import shared_pictures
from artkv.datasets.table import QuestionTable
from artkv.datasets.table_form import TableForm
from artkv.datasets.tokenized_table import rows_with_long_answers
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.feature_cache import check_cache
from artkv.files import check_folder_writable
from artkv.frozen.quantised import require_bitsandbytes
from artkv.frozen.residency import check_resident_blocks
from artkv.launcher_variables import check_environment
from artkv.models.art_encoder import load_art_encoder
from artkv.models.backbone.backends import open_backbone, resolve_dtype
from artkv.models.backbone.blip2_backbone import RESIDENT
from artkv.models.files.hub import local_folder, moving_revision
from artkv.monitoring.trackers import check_trackers
from artkv.reading import check_regular, printable, remedy_for
from artkv.run_folder.output_folder import check_output_folder
from artkv.run_folder.separation import check_is_apart
from artkv.session import Session, csv_path, pictures_folder, training_splits
from artkv.training.preemption import job_end_time
from artkv.training.schedule import total_steps, warmup_steps


def find_obstacles(config: Config, note: Callable[[str], None] = lambda text: None) -> list[str]:
    """Every problem, one a line, each with its place and remedy; empty if a run can start.

    Every picture is decoded once, every tensor's name and shape compared, BLIP-2's weights read and hashed, which is
    remembered for the runs; cached features are not read. `note` is told what stops nothing and is good to know.
    """
    session = Session(config, single_process())
    tables: dict[str, QuestionTable] = {}  # those of the splits whose rows are right
    checks: list[Callable[[Session], Sequence[str] | None]] = [
        _check_environment,
        _check_quantisation,
        _check_output_folder,
        _check_trackers,
        _check_deepspeed,
        lambda session: _note_idle_lora(session, note),
        _check_splits,  # before the pictures, which may not be set either
        lambda session: _check_data(session, tables, note),
        lambda session: _check_warmup(session, tables),
        lambda session: _note_shared_pictures(tables, note),
        lambda session: _note_lost_characters(tables, note),
        _check_art_encoders,
        lambda session: _check_blip2_and_texts(session, tables, note),  # from the hub it may take long
        _check_feature_cache,
    ]
    obstacles: list[str] = []
    for check in checks:
        try:
            found = list(check(session) or ())
        except UserError as error:
            found = [str(error)]
        obstacles += [obstacle for obstacle in found if obstacle not in obstacles]
    return obstacles


def _check_environment(session: Session) -> None:
    check_environment(os.environ)
    if "SLURM_JOB_END_TIME" in os.environ:  # squeue need not be asked
        job_end_time(os.environ)


def _check_quantisation(session: Session) -> None:
    opt = session.config.frozen.opt
    if opt in ("int8", "nf4"):
        require_bitsandbytes(opt)


def _check_output_folder(session: Session) -> None:
    check_output_folder(session.config.run.output_dir)
    check_is_apart(session.config)


def _check_trackers(session: Session) -> None:
    check_trackers(session.config.run.trackers)


def _check_deepspeed(session: Session) -> None:
    training = session.config.training
    is_bf16 = resolve_dtype(session.config.model.dtype, session.world.device) == torch.bfloat16
    tree = load_deepspeed_config(training.deepspeed)
    fill_deepspeed_config(tree, training, training.gradient_accumulation_steps, 1, is_bf16, 1)


def _note_idle_lora(session: Session, note: Callable[[str], None]) -> None:
    """Tells of LoRA's settings where nothing gets an adapter; the base of a sweep over the targets has them too."""
    lora = session.config.trainable.lora
    for key in ("rank", "alpha"):
        value = getattr(lora, key)
        if not lora.targets and value != type(lora).model_fields[key].default:
            note(f"trainable.lora.{key} = {value}: trains nothing, as trainable.lora.targets is empty; name some")


def _check_splits(session: Session) -> list[str]:
    obstacles = []
    for needed in (lambda: csv_path(session.config.dataset, "train"), lambda: training_splits(session.config)):
        try:
            needed()
        except UserError as error:
            obstacles.append(str(error))
    return obstacles


def _check_data(session: Session, tables: dict[str, QuestionTable], note: Callable[[str], None]) -> list[str]:
    config = session.config
    try:
        images = ImageIndex(pictures_folder(config.dataset), config.dataset.max_pixels)
    except UserError as error:  # which is no reason to tell of the tables only the next time
        return [str(error), *_unreadable_tables(config)]
    if images.unreadable:
        note(f"{len(images.unreadable)} folders below {images.root} are not listed: {images.unreadable[0]}")
    form = TableForm.of(config.dataset)
    obstacles = []
    for split in SPLITS:
        path = getattr(config.dataset, split)
        if path is not None:
            try:
                checked = check_table(path, images, form)
            except UserError as error:
                obstacles.append(f"dataset.{split}: {error}")
                continue
            obstacles += [str(problem) for problem in checked.problems]
            if checked.table is not None:
                tables[split] = checked.table
            if not checked.problems:
                checked.keep(images, form)
    return obstacles


def _unreadable_tables(config: Config) -> list[str]:
    """A line for each table that is no file, or may not be read."""
    problems = []
    for split in SPLITS:
        path = getattr(config.dataset, split)
        try:
            if path is not None:
                check_regular(path)
        except OSError as error:
            remedy = remedy_for(error, "give the path of a CSV file")
            problems.append(f"dataset.{split}: {printable(path)}: cannot be read ({error.strerror}); {remedy}")
    return problems


def _note_shared_pictures(tables: Mapping[str, QuestionTable], note: Callable[[str], None]) -> None:
    """Tells of pictures that are trained on, or chosen by, and judged by; nothing is wrong with a run that does it."""
    learnt = "tell what was learnt by heart"
    pairs = [
        ("val", "train", learnt),
        ("test", "train", learnt),
        ("test", "val", "are of pictures that the checkpoint was chosen by"),
    ]
    for split, other, why in pairs:
        if split not in tables or other not in tables:
            continue
        shared = shared_pictures(tables[split], tables[other])
        if shared:
            note(
                f"{len(shared)} of the {tables[split].num_paintings} pictures of dataset.{split} are pictures of "
                f"dataset.{other} too, the first {printable(shared[0][0])} = {printable(shared[0][1])}: "
                f"scores on {split} {why}; keep each painting in one split"
            )


def _note_lost_characters(tables: Mapping[str, QuestionTable], note: Callable[[str], None]) -> None:
    """Tells of texts with U+FFFD, which programs put where they could not read a character."""
    for table in tables.values():
        texts = zip(table.questions, table.answers, strict=True)
        rows = [row for row, pair in enumerate(texts) if any("\ufffd" in text for text in pair)]
        if rows:
            note(
                f"{table.place(rows[0])}: the first of {len(rows)} rows of the file with U+FFFD, which stands where a "
                "character was lost when the file was made; make it anew from its source"
            )


def _check_warmup(session: Session, tables: Mapping[str, QuestionTable]) -> None:
    if "train" in tables:
        training = session.config.training
        steps = total_steps(tables["train"], session.config, training.gradient_accumulation_steps)
        warmup_steps(training, steps)


def _check_blip2_and_texts(
    session: Session, tables: Mapping[str, QuestionTable], note: Callable[[str], None]
) -> list[str]:
    model = session.config.model
    backbone = open_backbone(model, RESIDENT, session.world)
    resident = session.config.frozen.resident_blocks
    if resident != "auto":
        check_resident_blocks(resident, len(backbone.language_model.model.decoder.layers))
    if model.revision is not None:
        folder = local_folder(model.blip2, "model.blip2", model.revision)
        if moves := moving_revision(model.revision, folder):
            note(moves)
    backbone.weight_digests()  # finds values that are not finite, and is remembered for the run
    obstacles = []
    for table in tables.values():
        tokenized, problems = session.tokenize(table, backbone)
        obstacles += [str(problem) for problem in problems]
        max_new_tokens = session.config.evaluation.max_new_tokens
        if long := rows_with_long_answers(tokenized, max_new_tokens):
            note(
                f"{table.place(long[0])}: the first of {len(long)} answers of the file with more than "
                f"evaluation.max_new_tokens = {max_new_tokens} tokens, which cannot be given whole; raise it"
            )
    return obstacles


def _check_art_encoders(session: Session) -> list[str]:
    obstacles = []
    for encoder in session.config.used_encoders:
        try:
            load_art_encoder(encoder)
        except UserError as error:
            obstacles.append(str(error))
    return obstacles


def _check_feature_cache(session: Session) -> None:
    if session.features.folder is not None:
        check_cache(session.cache_settings, session.world)
        folder = session.features.folder
        if not os.path.lexists(folder):  # one that is there may be whole, and need no writing
            check_folder_writable(folder, f"frozen.feature_cache = {folder}")
