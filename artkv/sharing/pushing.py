"""`artkv push`: a trained model with its evidence, as a repository of the hub."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from artkv.config import ArtEncoderConfig, Config
from artkv.errors import UserError
from artkv.files import file_sha256, save_tensors, told
from artkv.models.art_encoder import read_weights
from artkv.models.files.blip2_files import BLIP2_OPT_2_7B
from artkv.models.files.foreign_files import check_regular
from artkv.models.files.hub import COMMIT
from artkv.models.files.hub_failures import why_not_from_hub
from artkv.reading import printable
from artkv.report.evidence import Evidence, read_evidence
from artkv.report.facts import names_alone
from artkv.run_folder.adapter_file import is_beside_model, write_adapter
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint
from artkv.run_folder.layout import BEST
from artkv.sharing.card import card, scores_json
from artkv.sharing.hub_names import HubName, told_by_hub
from artkv.sharing.shared_files import (
    ADAPTER,
    CARD,
    COMPARISON,
    DESCRIPTION,
    FORMAT_VERSION,
    HUB_ID,
    SCORES,
    Description,
    art_encoder_file,
    read_description,
)


@dataclass(frozen=True)
class PushOptions:
    """What `artkv push` was asked for.

    run: a run's folder (its best checkpoint) or a checkpoint. base_model: the id of the frozen weights on the hub;
    None: `model.blip2`, which must be one then. with_art_encoder: whether its weights go along. licence: as the hub
    spells it; None: not stated.
    """

    run: str
    name: HubName
    private: bool = False
    base_model: str | None = None
    with_art_encoder: bool = True
    licence: str | None = None


def push(options: PushOptions, agrees: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Writes what is shared, tells of it, and uploads it if `agrees` then; `UserError` if not."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:  # before anything is written
        raise UserError(f"{options.name}: cannot be pushed: HF_HUB_OFFLINE is set; unset it, for that needs the hub")
    with tempfile.TemporaryDirectory(prefix="artkv-push-") as folder:
        files = write_shared(options, Path(folder))
        sizes = ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in files)
        say(f"to {options.name}, {'private' if options.private else 'for all to see'}: {sizes}")
        if not agrees():
            raise UserError(f"{options.name}: nothing was uploaded; answer y, or add --yes")
        _check_base(read_description(Path(folder) / DESCRIPTION, str(options.name)), options.base_model is not None)
        say(f"uploaded: {upload(options, Path(folder))}\nload it: load_model({str(options.name)!r})")


def write_shared(options: PushOptions, folder: Path) -> list[Path]:
    """Writes all that is to be pushed into a folder, and returns the files.

    Raises `UserError` if the run cannot be read, or its scores are those of another checkpoint.
    """
    run = Path(options.run)
    checkpoint = open_checkpoint(run / BEST if (run / BEST).exists() else run)
    _check_alone(checkpoint)
    evidence = _evidence(checkpoint)
    base, revision = _base(checkpoint.config, options.base_model)
    config = _without_paths(checkpoint.config, base, revision)
    with told(str(folder), "make room there, or set TMPDIR"):
        write_adapter(folder / ADAPTER, checkpoint.adapter(), config, checkpoint.frozen_hash, checkpoint.step)
        for number, encoder in enumerate(checkpoint.config.used_encoders if options.with_art_encoder else ()):
            if encoder.checkpoint is not None:
                _write_art_encoder(encoder, encoder.checkpoint, folder / art_encoder_file(number))
        sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        description = Description(FORMAT_VERSION, base, revision, checkpoint.frozen_hash, checkpoint.step, sums)
        description.write(folder / DESCRIPTION)
        text = card(options.name.repo, replace(checkpoint, config=config), description, evidence, options.licence)
        (folder / CARD).write_text(text, encoding="utf-8")
        if evidence is not None:
            (folder / SCORES).write_text(json.dumps(scores_json(evidence), indent=2), encoding="utf-8")
            if evidence.comparison is not None:
                compared = names_alone(evidence.comparison.to_json())  # runs by their names
                (folder / COMPARISON).write_text(json.dumps(compared, indent=2), encoding="utf-8")
    return sorted(folder.iterdir())


def upload(options: PushOptions, folder: Path) -> str:
    """Makes the repository if need be and uploads a folder into it in one commit; returns the commit's address.

    Raises `UserError` where there is no token, or a repository of that name that artkv did not write.
    """
    from huggingface_hub import HfApi, get_token

    name, api = options.name, HfApi()
    if not get_token():
        raise UserError(f"{name}: cannot be pushed without a token; log in with `hf auth login`, or set HF_TOKEN")
    with told_by_hub(name, "cannot be pushed", sends=True):
        api.create_repo(name.repo, private=options.private, exist_ok=True)
        info = api.model_info(name.repo)
        present = {file.rfilename for file in info.siblings or ()}
        if present - {".gitattributes"} and DESCRIPTION not in present:
            raise UserError(f"{name}: is a repository that artkv push did not write; give another name")
        if options.private and not info.private:
            raise UserError(f"{name}: is public already; make it private on its page, or give another name")
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name.repo, folder_path=folder, revision=name.revision, commit_message="artkv push"
        )
    return str(commit.commit_url)


def _evidence(checkpoint: Checkpoint) -> Evidence | None:
    """The scores of the checkpoint that is pushed; None where nothing was evaluated."""
    run_dir = checkpoint.run_dir
    if checkpoint.run is None or not any((run_dir / "eval").glob("*-on")):
        return None
    evidence = read_evidence(run_dir)
    if (answered := evidence.evaluations[0].checkpoint) != checkpoint.path.name:
        raise UserError(
            f"{run_dir}: its scores are those of {answered}, and {checkpoint.path.name} is to be pushed; evaluate "
            "that, or push the other"
        )
    return evidence


def _check_alone(checkpoint: Checkpoint) -> None:
    """Raises `UserError` for what stands beside an exported model, whose own weights it needs, which no hub id has."""
    if checkpoint.run is None and is_beside_model(checkpoint.path):
        raise UserError(
            f"{checkpoint.path}: belongs to the exported model beside it, whose weights hold what was trained too, and "
            "works with no others; give the run's folder, a checkpoint's, or a file of artkv export --format adapter"
        )


def _base(config: Config, given: str | None) -> tuple[str, str | None]:
    """The id of the frozen weights, and their commit where the hub's cache tells it."""
    from huggingface_hub import try_to_load_from_cache

    base = given or config.model.blip2
    if Path(base).is_absolute() or (config.model.is_lavis_file and given is None):
        raise UserError(
            f"model.blip2 = {base!r}: is a file or folder of this machine; add --base-model with the id of the same "
            "weights on the hub"
        )
    if Path(base).is_dir():
        place = f"model.blip2 = {base!r}" if given is None else f"--base-model {base}"
        raise UserError(
            f"{place}: is a folder of this machine; give --base-model the id of the same weights on the hub, from "
            "where no folder has that name"
        )
    if not HUB_ID.fullmatch(base) or ".." in base:
        raise UserError(f"--base-model {base}: is no id of the hub; give one such as {BLIP2_OPT_2_7B}")
    revision = config.model.revision
    if revision is None or not COMMIT.fullmatch(revision):
        found = try_to_load_from_cache(base, "config.json", revision=revision) if "/" in base else None
        revision = Path(found).parent.name if isinstance(found, str) else None
    return base, revision if revision is not None and COMMIT.fullmatch(revision) else None


def _check_base(description: Description, is_given: bool) -> None:
    """Raises `UserError` unless the hub has the base model, and it is a BLIP-2 as far as the hub knows.

    is_given: whether --base-model named it. Nobody could load what is shared without it.
    """
    from huggingface_hub import HfApi

    base, revision = description.base_model, description.base_revision
    place = f"--base-model {base}" if is_given else f"model.blip2 = {base!r}"
    try:
        info = HfApi().model_info(base, revision=revision)
    except Exception as error:
        raise UserError(
            f"{place}: cannot be found on the hub: {why_not_from_hub(error, revision, sends=True)}"
        ) from None
    files = [file.rfilename for file in info.siblings or ()]
    if files and not any(file.endswith((".safetensors", ".bin", ".pth")) for file in files):
        raise UserError(
            f"{place}: holds no weights ({', '.join(sorted(files)[:5]):.200}); give the id of the frozen weights, such "
            f"as {BLIP2_OPT_2_7B}"
        )
    kind = (info.config or {}).get("model_type", "blip-2")
    if kind != "blip-2":
        raise UserError(
            f"{place}: is {kind!r:.80}, expected blip-2; give the id of the frozen weights, such as {BLIP2_OPT_2_7B}"
        )


def _without_paths(config: Config, base: str, revision: str | None) -> Config:
    """The settings without what tells of somebody's disk."""
    model = config.model.model_copy(update={"blip2": base, "revision": revision, "opt": None, "vit": None})
    without = config.with_encoder_checkpoints([None] * len(config.encoders))
    return without.model_copy(update={"model": model})


def _write_art_encoder(encoder: ArtEncoderConfig, source: Path, target: Path) -> None:
    """As it is where it is safetensors, which no code can hide in; else its tensors by their own names."""
    # Here, for a caller takes what the system refuses for the place that is written to.
    place = f"{encoder.place}.checkpoint = {printable(source)}"
    check_regular(source, place, "put it back, or add --leave-out-art-encoder")
    if source.suffix == ".safetensors":
        shutil.copyfile(source, target)
    else:
        save_tensors(read_weights(source, encoder.architecture, encoder.place).tensors, target, {"format": "pt"})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_sha256(file)
