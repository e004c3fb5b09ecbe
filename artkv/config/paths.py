"""The settings that are paths: `~` is the user's folder, and inputs are relative to the file that names them."""

import os
import re
from pathlib import Path
from typing import Any

from artkv.config.mistyped import begins_with_quote
from artkv.errors import UserError

# Input paths, relative to the config file. run.output_dir is relative to the working directory.
_INPUT_PATHS = [
    ("model", "vit"),
    ("efficientnet", "checkpoint"),
    ("dataset", "train"),
    ("dataset", "val"),
    ("dataset", "test"),
    ("dataset", "image_root"),
    ("frozen", "feature_cache"),
]
# Settings that are either a path or the name of something: a path if it is written as one ('./x', '/x',
# '~/x') or if a file is there.
_PATHS_OR_NAMES = [("model", "blip2"), ("model", "opt"), ("training", "deepspeed")]
_OUTPUT_PATHS = [("run", "output_dir")]
_WHAT = {"model.blip2": "a hub id or a path", "training.deepspeed": "the name of a file of ds_configs/, or a path"}
# What may be null, for none. (The others have a default, or a run needs them.)
_NONE_TAKEN = (
    "model.opt", "model.vit", "dataset.val", "dataset.test", "frozen.feature_cache",
)  # fmt: skip
# An input path of each entry.
_ENCODERS_PATH = ("art_encoders", "checkpoint")

# https://..., s3://..., hf://...
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WRITTEN_AS_PATH = re.compile(r"(?:\.{0,2}|~[^/]*)/|\.{1,2}$")


def expand_home(text: str, place: str) -> Path:
    """`text` as a path, with the folder of a user for `~` or `~name`; `UserError` where there is none.

    place: where the text was given, such as `run.output_dir`.
    """
    # Path("./~x") would be the same as Path("~x").
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        name = text.split("/")[0]
        raise UserError(
            f"{place} = {text!r:.200}: no home folder is known for {name!r:.80}; give the path in full, or begin it "
            "with ./ where it is a folder's name"
        )
    if os.path.normpath(expanded).startswith("~"):
        expanded = os.path.abspath(expanded)
    return Path(expanded)


def shipped_folder(name: str) -> Path:
    """The folder `ds_configs` or `launch`: inside the package in an installation, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def user_cache() -> Path:
    """The folder of what artkv keeps for a user: $ARTKV_CACHE, or artkv in the user's cache.

    Raises `UserError` where neither the environment nor the system knows a home folder.
    """
    own, shared = os.environ.get("ARTKV_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return expand_home(own, "environment: ARTKV_CACHE").absolute()
    if shared:
        return expand_home(shared, "environment: XDG_CACHE_HOME").absolute() / "artkv"
    home = os.path.expanduser("~")
    if home == "~":
        raise UserError(
            f"environment: HOME is not set, and the system knows no home folder of user {os.getuid()}; set HOME or "
            "ARTKV_CACHE"
        )
    return Path(home).absolute() / ".cache" / "artkv"


def user_memory() -> Path:
    """The folder of small files that spare the next start its seconds: artkv in the user's cache.

    Not in $ARTKV_CACHE, which may be of a run or a job; that is for a user without a home. Raises `UserError` like
    `user_cache`.
    """
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (expand_home(shared, "environment: XDG_CACHE_HOME") if shared else Path.home() / ".cache") / "artkv"
    except RuntimeError:  # nobody's home
        return user_cache()


def resolve_paths(tree: dict[str, Any], base: Path) -> None:
    """Makes the input paths among the settings absolute, from `base`, and expands `~` in all; in place."""
    for section, key in _INPUT_PATHS + _PATHS_OR_NAMES + _OUTPUT_PATHS:
        _resolve(tree.get(section), section, (section, key), base)
    for number, encoder in _entries(tree.get("art_encoders")):
        _resolve(encoder, f"art_encoders.{number}", _ENCODERS_PATH, base)


def _resolve(values: Any, section: str, kind: tuple[str, str], base: Path) -> None:
    """Makes one path of a section's `values` absolute; kind: its section and key."""
    key = kind[1]
    if not isinstance(values, dict) or not isinstance(values.get(key), str):
        return
    text, place = values[key], f"{section}.{key}"
    if kind == ("frozen", "feature_cache") and text == "auto":
        return  # a folder of that name is written ./auto
    if not text.strip():
        or_none = ", or null for none" if place in _NONE_TAKEN else ""
        raise UserError(f"{place} = {text!r:.200}: is empty; give {_WHAT.get(place, 'a path')}{or_none}")
    if _ADDRESS.match(text) and kind not in (("model", "blip2"), ("model", "opt")):  # whose may be of the hub
        raise UserError(
            f"{place} = {text!r:.200}: is an address, and artkv fetches nothing from it; fetch the files, and give "
            f"{_WHAT.get(place, 'a path')}"
        )
    if begins_with_quote(text) and not os.path.exists(base / text):
        raise UserError(
            f"{place} = {text!r:.200}: begins with the quote {text[0]}, which YAML takes for a part of the name; write "
            "\" or ', or no quotes"
        )
    expanded = expand_home(text, place)
    if kind in _OUTPUT_PATHS:
        values[key] = str(expanded)
        return
    # Neither raises, whatever is there: a path that cannot be is found where it is opened.
    resolved = os.path.realpath(base / expanded)
    if kind not in _PATHS_OR_NAMES or _WRITTEN_AS_PATH.match(text) or os.path.exists(resolved):
        values[key] = resolved


def _entries(encoders: Any) -> list[tuple[Any, Any]]:
    """The entries of the list, or those that `--set art_encoders.0.key=value` names, with their numbers."""
    if isinstance(encoders, dict):
        return list(encoders.items())
    return list(enumerate(encoders)) if isinstance(encoders, list) else []
