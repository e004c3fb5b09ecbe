"""PyTorch's `.pth` and `.bin` files, of which nothing but tensors and plain values is read, and no code is run."""

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artkv.errors import UserError
from artkv.models.files.foreign_files import check_regular, reason_of, shown
from artkv.reading import printable

# How what `torch.save` wrote begins: a zip archive, and before torch 1.6 a pickle of protocol 2 or later.
_ARCHIVE, _PICKLE = b"PK\x03\x04", b"\x80"
WEIGHTS_NAME = "pytorch_model.bin"
_LAVIS_FILE = "give the .pth as LAVIS has it"
_BYTES_AT_ONCE = 2**20
# The tensors of a file may share storages, as tied weights do; beyond so many times its bytes it means harm.
_MOST_SHARING = 4


def read_pickle(
    path: Path,
    setting: str | None = None,
    plain_values: Sequence[Callable[..., Any] | tuple[Any, str]] = (),
    is_lavis: bool = True,
) -> dict[str, Any]:
    """What a PyTorch file holds, its tensors memory-mapped; `setting` names it in errors.

    plain_values: harmless classes that may be in it beside what PyTorch allows. is_lavis: where a setting names it,
    LAVIS's file belongs there, and no safetensors.

    Raises:
        UserError: if there is no such file, it holds more than tensors and plain values, or is no dict.
    """
    place = f"{setting} = {printable(path)}" if setting else printable(path)
    check_regular(path, place, "give an existing one")
    if (why := _no_checkpoint(path)) is not None:
        # Of a model's folder transformers, and artkv with it, reads these two names alone.
        renamed = "model.safetensors" if path.name == WEIGHTS_NAME else path.with_suffix(".safetensors").name
        is_other = why == "it holds safetensors"
        remedy = "fetch or write it again"
        if is_other:
            remedy = (
                f"if it belongs here, rename it to {printable(renamed)}"
                if setting is None or not is_lavis
                else _LAVIS_FILE
            )
        raise UserError(f"{place}: is not a readable PyTorch checkpoint ({why}); {remedy}")
    try:
        is_archive = _is_archive(path)
        if is_archive:
            _check_archive(path, place)
        with torch.serialization.safe_globals(list(plain_values)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles' protocols, say: what is wrong is an error
            # Files of torch before 1.6 are no zip archives and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except Exception as error:
        if needs := re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error)):
            raise UserError(
                f"{place}: may hold code (it needs {needs[1] or needs[2]}); not read, for artkv never runs code from "
                "a file; have its tensors saved alone, torch.save(model.state_dict(), ...), or as safetensors, by "
                "whom it is from"
            ) from None
        raise UserError(
            f"{place}: is not a readable PyTorch checkpoint ({_summary(error)}); fetch or write it again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds a {type(content).__name__}, expected a dict of tensors; give a checkpoint")
    return content


def plain_tensors(tensors: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, all of which must be dense numbers that lie in the file; `UserError` if not.

    A tensor that says to have more numbers than its storage holds would take any amount of memory once it is copied.
    """
    wrong = []
    for name, value in tensors.items():
        if not isinstance(name, str):
            wrong.append(f"the name {name!r:.80} is no text")
        elif why := _oddity(value):
            wrong.append(f"{shown(name)} {why}")
    if not wrong:
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if num_bytes > _MOST_SHARING * path.stat().st_size:
            wrong.append(f"its tensors have {num_bytes:,} bytes, the file {path.stat().st_size:,}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{printable(path)}: holds what is no weight: {'; '.join(wrong[:5])}{more}; give a checkpoint of dense "
            "tensors"
        )
    return dict(tensors)


def _oddity(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, no tensor"
    if value.layout is not torch.strided or value.is_nested:
        return f"is a tensor of layout {str(value.layout).removeprefix('torch.')}, not dense"
    if value.is_quantized:
        return "is quantised"
    if value.is_meta:
        return "has a shape and no values"
    if value.is_complex():
        return "holds complex numbers"
    if value.nbytes > value.untyped_storage().nbytes():
        return f"says to have the shape {tuple(value.shape)}, of which the file holds but a part"
    return None


def check_sums(path: Path) -> None:
    """Raises `UserError` where a part of an archive is not what was written, as torch, which maps it, does not see.

    Reads the whole file, at over 1 GiB/s. Files of another kind have no checksums, nor do those that torch wrote after
    `set_crc32_options(False)`.
    """
    if not _is_archive(path):
        return
    wrong = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC == 0:  # not computed
                    continue
                wrong = part.filename
                with archive.open(part) as content:
                    while content.read(_BYTES_AT_ONCE):
                        pass
    except zipfile.BadZipFile:
        raise UserError(
            f"{printable(path)}: its part {shown(wrong)} does not match its checksum: the file is damaged; fetch or "
            "write it again"
        ) from None


def _no_checkpoint(path: Path) -> str | None:
    """What a file is that `torch.save` cannot have written, by how it begins; None for any other."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith((_ARCHIVE, _PICKLE)):
        return None
    if not start:
        return "it is empty"
    if not any(start):
        return "it begins with zeros, as a disk that failed or a copy that broke off leaves it"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**27:
        return "it holds safetensors"
    return f"it begins with {start[:16]!r}, and no file of torch.save does"


def begins_as_checkpoint(path: Path) -> bool:
    """Whether a file, whatever its name, begins as `torch.save` has files begin.

    The length that safetensors begin with could have these bytes, of a header of more than 60 MB.
    """
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith((_ARCHIVE, _PICKLE)) and start[8:9] != b"{"


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ARCHIVE


def _check_archive(path: Path, place: str) -> None:
    """Refuses compressed parts, which `torch.save` never makes, and which may unpack to fill the memory."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    names = [part.filename for part in parts]
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{place}: is TorchScript, which holds code; not read, have the tensors saved alone, with "
            "torch.save(model.state_dict(), ...)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        held = f"it holds {shown(names[0])}" if names else "it is empty"
        raise UserError(
            f"{place}: is a zip archive, and none of torch.save ({held}); unpack it, and give what belongs here"
        )
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UserError(f"{place}: its parts are compressed, as torch.save never does; not read, save it anew")


def _summary(error: Exception) -> str:
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return reason_of(RuntimeError(reason[1])) if reason else reason_of(error)
