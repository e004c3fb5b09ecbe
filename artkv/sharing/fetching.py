"""Opens a checkpoint by its path, or by its id on the hub."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import file_sha256
from artkv.reading import OtherVersion
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint
from artkv.sharing.hub_names import HubName, check_names_something, hub_name, told_by_hub
from artkv.sharing.shared_files import (
    ADAPTER,
    DESCRIPTION,
    Description,
    art_encoder_file,
    most_bytes,
    read_description,
)


def open_shared(given: str | Path) -> Checkpoint:
    """The checkpoint at a path, or else that of an id such as `user/name`, which is fetched or taken from the cache.

    Raises `UserError` as `open_checkpoint` does, and where the hub has no such model or does not let it be had.
    """
    check_names_something(given)
    name = hub_name(given)
    return open_checkpoint(given) if name is None else _open_fetched(name)


def _open_fetched(name: HubName) -> Checkpoint:
    """Fetches what is known by name alone, the description first, and verifies it."""
    pinned, description = _fetch_description(name)
    if ADAPTER not in description.sha256:
        raise UserError(f"{name}: {DESCRIPTION} names no {ADAPTER}; ask its author to push it again")
    files = {}
    for file in filter(most_bytes, description.sha256):
        files[file] = _fetch(name, pinned.revision, file)
        with files[file].open("rb") as opened:
            if file_sha256(opened) != description.sha256[file]:
                raise UserError(
                    f"{name}: {file} does not match its checksum; delete {files[file].resolve()}, and try again; if "
                    "that does not help, ask its author to push it anew"
                )
    try:
        checkpoint = open_checkpoint(files[ADAPTER])
    except OtherVersion:
        raise
    except UserError as error:
        # Without the place, which is of the cache, and the remedy, which is for who has the run.
        reason = str(error).removeprefix(f"{files[ADAPTER].resolve()}: ").removeprefix(f"{files[ADAPTER]}: ")
        reason = reason.rpartition("; ")[0] or reason
        raise UserError(f"{name}: {ADAPTER}: {reason}; ask its author to push it again") from None
    if checkpoint.frozen_hash != description.frozen_hash:
        raise UserError(f"{name}: {ADAPTER} and {DESCRIPTION} are of two models; ask its author to push it again")
    results = Path.cwd() / "outputs" / name.repo.replace("/", "--")
    config = _settings(checkpoint.config, description, files)
    return replace(checkpoint, config=config, results=results, hub_id=str(name))


def _settings(config: Config, description: Description, files: Mapping[str, Path]) -> Config:
    """The adapter's settings with weights that can be had here; no path of whoever wrote it is among them."""
    model = {"blip2": description.base_model, "revision": description.base_revision, "opt": None, "vit": None}
    encoders = [files.get(art_encoder_file(number)) for number in range(len(config.encoders))]
    shared = config.with_encoder_checkpoints(encoders)
    return shared.model_copy(update={"model": config.model.model_copy(update=model)})


def _fetch_description(name: HubName) -> tuple[HubName, Description]:
    """What the model says of itself, once its files are known to be of sizes that models have; and its commit."""
    from huggingface_hub import HfApi, constants

    newest = None
    if not constants.HF_HUB_OFFLINE:
        with told_by_hub(name, "cannot be fetched"):
            info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if DESCRIPTION not in sizes:
            raise UserError(f"{name}: holds no model that artkv push has written; give the id of one")
        if ADAPTER not in sizes:
            raise UserError(f"{name}: {ADAPTER} is gone from it; ask its author to push it again")
        for file, size in sizes.items():
            if (most := most_bytes(file)) is not None and size > most:
                raise UserError(f"{name}: {file} has {size:,} bytes, of {most:,} at most; it is not fetched")
        newest = info.sha
    # By the name that was given, so that the cache knows it without a network; all else by the commit.
    path = _fetch(name, name.revision, DESCRIPTION)
    commit = path.parent.name
    if newest is not None and commit != newest:
        raise UserError(f"{name}: has just been changed; try again")
    return HubName(name.repo, commit), read_description(path, str(name))


def _fetch(name: HubName, revision: str | None, file: str) -> Path:
    from huggingface_hub import HfApi

    with told_by_hub(name, f"{file} cannot be fetched"):
        return Path(HfApi().hf_hub_download(name.repo, file, revision=revision))
