"""The files of a shared model: their names, their bounds, and what `artkv.json` says."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from artkv.errors import UserError
from artkv.models.files.hub import COMMIT
from artkv.reading import Count, OtherVersion, parse_json, read_regular, to_record

FORMAT_VERSION = 1
DESCRIPTION, ADAPTER = "artkv.json", "adapter.safetensors"
COMPARISON, SCORES, CARD = "comparison.json", "scores.json", "README.md"
# Bytes that are fetched at most of each file, and no other file is; LoRA of a large rank on OPT has a few billion.
MOST_BYTES = {DESCRIPTION: 2**20, ADAPTER: 2**34}
_MOST_ENCODER_BYTES = 2**33
_ART_ENCODER = re.compile(r"art_encoder(_[1-9][0-9]?)?\.safetensors")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_REMEDY = "ask its author to push it again"


def art_encoder_file(number: int) -> str:
    """The name of the weights of a config's art encoder, counted from 0."""
    return "art_encoder.safetensors" if number == 0 else f"art_encoder_{number + 1}.safetensors"


def most_bytes(file: str) -> int | None:
    """How many bytes of a file are fetched at most; None: it is not fetched."""
    return _MOST_ENCODER_BYTES if _ART_ENCODER.fullmatch(file) else MOST_BYTES.get(file)


@dataclass(frozen=True)
class Description:
    """What `artkv.json` says. base_revision: the commit of `base_model`; None where nobody knows it.

    frozen_hash: of the weights that it was trained beside, the art encoders' included. sha256: of the other files that
    are fetched, by name.
    """

    format_version: int
    base_model: str
    base_revision: str | None
    frozen_hash: str
    step: Count
    sha256: dict[str, str]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_description(path: Path, place: str) -> Description:
    """What a fetched `artkv.json` says; `UserError` if it is none."""
    try:
        tree = parse_json(read_regular(path, MOST_BYTES[DESCRIPTION]))
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {DESCRIPTION} cannot be read ({error}); {_REMEDY}") from None
    if isinstance(tree, dict) and (version := tree.get("format_version")) != FORMAT_VERSION:
        raise OtherVersion(
            f"{place}: has format {version!r:.80}, this artkv reads {FORMAT_VERSION}; use the artkv that pushed it"
        )
    read = to_record(Description, tree, f"{place}: {DESCRIPTION}", _REMEDY)
    if not HUB_ID.fullmatch(read.base_model) or ".." in read.base_model:
        raise UserError(f"{place}: base_model = {read.base_model!r:.200}: is no id of the hub; {_REMEDY}")
    if read.base_revision is not None and not COMMIT.fullmatch(read.base_revision):
        raise UserError(f"{place}: base_revision = {read.base_revision!r:.200}: is no commit; {_REMEDY}")
    return read
