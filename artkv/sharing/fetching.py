"""Opens a checkpoint by its path, or by its id on the hub."""

from dataclasses import replace
from pathlib import Path

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import file_sha256
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint
from artkv.sharing.hub_names import HubName, hub_name, told_by_hub
from artkv.sharing.shared_files import ADAPTER, ART_ENCODER, DESCRIPTION, MOST_BYTES, Description, read_description


def open_shared(given: str | Path) -> Checkpoint:
    """The checkpoint at a path, or else that of an id such as `user/name`, which is fetched or taken from the cache.

    Raises `UserError` as `open_checkpoint` does, and where the hub has no such model or does not let it be had.
    """
    name = hub_name(given)
    return open_checkpoint(given) if name is None else _open_fetched(name)


def _open_fetched(name: HubName) -> Checkpoint:
    """Fetches what is known by name alone, the description first, and verifies it."""
    pinned, description = _fetch_description(name)
    wanted = [ADAPTER, *([ART_ENCODER] if ART_ENCODER in description.sha256 else [])]
    if ADAPTER not in description.sha256:
        raise UserError(f"{name}: {DESCRIPTION} names no {ADAPTER}; ask its author to push it again")
    files = {}
    for file in wanted:
        files[file] = _fetch(name, pinned.revision, file)
        with files[file].open("rb") as opened:
            if file_sha256(opened) != description.sha256[file]:
                raise UserError(
                    f"{name}: {file} does not match its checksum; delete {files[file].parent}, and try again"
                )
    checkpoint = open_checkpoint(files[ADAPTER])
    if checkpoint.frozen_hash != description.frozen_hash:
        raise UserError(f"{name}: {ADAPTER} and {DESCRIPTION} are of two models; ask its author to push it again")
    results = Path.cwd() / "outputs" / name.repo.replace("/", "--")
    return replace(
        checkpoint, config=_settings(checkpoint.config, description, files.get(ART_ENCODER)), results=results
    )


def _settings(config: Config, description: Description, art_encoder: Path | None) -> Config:
    """The adapter's settings with weights that can be had here; no path of whoever wrote it is among them."""
    model = {"blip2": description.base_model, "revision": description.base_revision, "opt": None, "vit": None}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "efficientnet": config.efficientnet.model_copy(update={"checkpoint": art_encoder}),
        }
    )


def _fetch_description(name: HubName) -> tuple[HubName, Description]:
    """What the model says of itself, once its files are known to be of sizes that models have; and its commit."""
    from huggingface_hub import HfApi, constants

    newest = None
    if not constants.HF_HUB_OFFLINE:
        with told_by_hub(name, "cannot be fetched"):
            info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if DESCRIPTION not in sizes or ADAPTER not in sizes:
            raise UserError(f"{name}: holds no model that artkv push has written; give the id of one")
        for file, most in MOST_BYTES.items():
            if sizes.get(file, 0) > most:
                raise UserError(f"{name}: {file} has {sizes[file]:,} bytes, of {most:,} at most; it is not fetched")
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
