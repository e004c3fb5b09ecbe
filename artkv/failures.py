"""How a command ends that cannot go on: with one message and an exit code, and no traceback but in a file."""

import argparse
import errno
import io
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from artkv.errors import Preempted, RunFailed, UserError, shared_memory_message, summary

# Exit codes. 2, wrong usage, is argparse's own.
DONE = 0
WRONG_INPUT = 1
RUN_FAILED = 3
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
INTERRUPTED = 130  # as of a program that SIGINT ends
_OUTPUT_CLOSED = 141  # as of a program that SIGPIPE ends

_OTHER_PATH = "give another path"
_REMEDIES: Mapping[int, str] = {
    errno.ENOENT: "give a path that is there",
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your share of the disk, or write to another",
    errno.EACCES: "give this user permission (chmod u+rw, and u+x for the folders above it), or another path",
    errno.EPERM: "give a path that this user may use",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a path whose upper parts are folders",
    errno.EEXIST: _OTHER_PATH,
    errno.ENOTEMPTY: _OTHER_PATH,
    errno.ELOOP: "give a path without a circle of symbolic links",
    errno.EMLINK: _OTHER_PATH,
    errno.EXDEV: _OTHER_PATH,
    errno.ENODEV: _OTHER_PATH,
    errno.ENXIO: _OTHER_PATH,
    errno.EINVAL: _OTHER_PATH,
    errno.ENOTSUP: _OTHER_PATH,
    errno.ETXTBSY: _OTHER_PATH,
    errno.EBUSY: "wait until nobody uses it, or give another path",
    errno.EFBIG: "raise `ulimit -f`, or write to another file system",
    errno.EMFILE: "raise `ulimit -n`, or lower dataset.workers",
    errno.ENFILE: "close other programs, or raise the system's fs.file-max",
    errno.EAGAIN: "close other programs, or raise `ulimit -u`",
    errno.EIO: "the disk or file server failed; look into the system's log",
    errno.ESTALE: "the file server has lost it; start again",
    errno.EADDRINUSE: "give another port",
    errno.EADDRNOTAVAIL: "give an address of this machine",
}
_SECONDS = (r"\s*[0-9]{1,9}\s*", "a whole number of seconds")
_PORT = "[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
# What these libraries take of their variables: a pattern, and how it is told.
_VARIABLES: Mapping[str, tuple[str, str]] = {
    "HF_HUB_ETAG_TIMEOUT": _SECONDS,
    "HF_HUB_DOWNLOAD_TIMEOUT": _SECONDS,
    "HF_ENDPOINT": (
        rf"|https?://([^\s/:@\[\]]+|\[[0-9a-fA-F:.]+\])(:({_PORT}))?(/\S*)?",
        "an address such as https://huggingface.co",
    ),
    "TORCH_DISTRIBUTED_DEBUG": ("(?i:OFF|INFO|DETAIL)", "OFF, INFO or DETAIL"),
    "DS_ACCELERATOR": ("cuda|cpu", "cuda or cpu"),
    "ARTKV_CUDA_GRAPHS": ("[01]", "0 or 1"),
}
_LOWER = {
    "art-encoder": "--batch-size, --image-size or --workers",
    "serve": "evaluation.max_new_tokens, or give --set frozen.opt=stream",
}
_LOWER_OF_ANY = (
    "training.batch_size, evaluation.batch_size, dataset.workers or what else was set high (an art encoder's "
    "image_size, kv_modulation.num_prefix_tokens, trainable.lora.rank)"
)
_IS_MEMORY = re.compile(
    r"can't allocate memory|out of memory|Cannot allocate memory|Unable to allocate|STATUS_ALLOC_FAILED|bad_alloc|"
    r"Storage size calculation overflowed|Invalid buffer size|can't start new thread"
)
_OUTPUT = "standard output"
_NAMES: Mapping[int, str] = {1: _OUTPUT, 2: "standard error"}
# How the dynamic linker says that a library found no room: it is loaded before any setting is read.
_IS_NO_ROOM = re.compile(r"failed to map segment|cannot create shared object descriptor|cannot allocate memory", re.I)
# Rust's way to tell what the system said, as safetensors and tokenizers do.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
# Marks that change the direction of a line, so that it reads otherwise than it is, and what has no width and no use:
# joiners, which languages need, are none of it.
_TURNS = re.compile("[\u00ad\u200b\u2060\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def for_terminal(text: str) -> str:
    """`text` as a terminal can be given it: what would control it is escaped, but for ends of lines."""

    def escape(character: str) -> str:
        is_plain = character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        return character if is_plain and not _TURNS.match(character) else character.encode("unicode_escape").decode()

    return "".join(map(escape, text))


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which repeats what was typed in its messages, on a terminal too."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(for_terminal(message), file)


def tell(text: str) -> None:
    """A message on stderr, as artkv's."""
    try:
        print(for_terminal(f"artkv: {text}"), file=sys.stderr, flush=True)
    except OSError:  # full, or closed: the exit code still tells
        _forget(sys.stderr)


def rank() -> str:
    """This process's, before and after the ranks have met."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


class _NamedOutput(io.FileIO):
    """A standard stream whose errors name it, as those of a file that was opened by its path do."""

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:  # whose reader has gone: no error of the user's
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, _NAMES[self.fileno()]) from None


def let_output_pass() -> None:
    """Lets stdout and stderr take any text, whatever the locale, and name themselves where they cannot be written."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
                if stream is getattr(sys, f"__{name}__") and stream.fileno() in _NAMES:
                    setattr(sys, name, _named(stream))


def _named(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, on a `_NamedOutput`."""
    stream.flush()
    raw = _NamedOutput(stream.fileno(), "w", closefd=False)
    raw.name = stream.name
    is_unbuffered = isinstance(stream.buffer, io.RawIOBase)  # by PYTHONUNBUFFERED or python -u
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),  # type: ignore[type-var]
        stream.encoding,
        stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def check_surroundings(environment: Mapping[str, str]) -> None:
    """Raises `UserError` where the working folder is gone, or for a variable that a library would die of.

    Here, before any of them is imported: they say no more than that some text is no number.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working folder: {error.strerror}; change to one that is there, with cd") from None
    for name, (pattern, remedy) in _VARIABLES.items():
        text = environment.get(name)
        if text is not None and not re.fullmatch(pattern, text):
            raise UserError(f"environment: {name}={text!r:.80}: is not understood; unset it, or give {remedy}")


def exit_code(error: BaseException, verb: str | None, debug: bool) -> int:
    """Tells what ended a command, and returns the command's exit code.

    verb: None where it was not known yet. debug: show the traceback of what is no wrong input.
    """
    who = "" if rank() == "0" else f"[rank {rank()}] "
    if isinstance(error, UserError):
        if rank() == "0" or not error.on_all_ranks:
            tell(f"{who}{error}")
        return WRONG_INPUT
    if isinstance(error, Preempted):
        if rank() == "0":
            again = {"sweep": "the same command", "quickstart": "the same command", "art-encoder": "--resume"}
            saved = "" if error.step is None else ", which is saved"
            tell(f"{error}{saved}; go on with {again.get(verb or '', '--resume auto')}")
        return PREEMPTED
    if isinstance(error, KeyboardInterrupt):
        if rank() == "0":
            tell("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and error.filename is None:
        _forget(sys.stdout)
        return _OUTPUT_CLOSED
    if isinstance(error, OSError) and error.filename == _OUTPUT:
        _forget(sys.stdout)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, RunFailed):
        tell(f"run failed: {error}")
        return RUN_FAILED
    if (memory := _told_of_memory(error, verb)) is not None:
        tell(f"{who}{memory}")
        return RUN_FAILED
    if (system := _told_by_system(error)) is not None:
        tell(f"{who}{system}")
        return WRONG_INPUT
    if (memory := shared_memory_message(str(error))) is not None:
        tell(f"{who}run failed: {memory}")
        return RUN_FAILED
    if _is_lost_peer(error):
        tell(f"{who}run failed: another rank is gone ({summary(error):.300}); look at the first error of the others")
        return RUN_FAILED
    where = "" if debug else f"\n  {_kept_traceback(error)}"
    tell(f"{who}failed in a way that nobody foresaw: {type(error).__name__}: {summary(error):.500}{where}")
    return RUN_FAILED


def _is_lost_peer(error: BaseException) -> bool:
    from artkv.run_folder.state_record import is_lost_peer  # a command that has no ranks need not wait for it

    return isinstance(error, RuntimeError) and "RANK" in os.environ and is_lost_peer(str(error))


def _told_of_memory(error: BaseException, verb: str | None) -> str | None:
    """The message where there was too little memory, None for any other error."""
    text = (str(error).strip().splitlines() or [""])[0]
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    by_text = isinstance(error, (RuntimeError, OSError)) and _IS_MEMORY.search(text)
    by_linker = isinstance(error, (ImportError, OSError)) and ".so" in text and _IS_NO_ROOM.search(text)
    if not (by_type or by_text or by_linker):
        return None
    if "can't start new thread" in text and (limit := resource.getrlimit(resource.RLIMIT_NPROC)[0]) >= 0:
        return f"run failed: no more threads can be started ({text:.300}); raise `ulimit -u`, which is {limit:,} here"
    is_gpu = "CUDA" in text or type(error).__name__ == "OutOfMemoryError"
    where = "of the GPU" if is_gpu else "of this machine"
    detail = f" ({text:.300})" if text else ""
    remedies = [] if is_gpu else [f"raise `ulimit -v`, which is {limit:,} KiB here" for limit in _memory_limit()]
    if by_linker:
        remedies = remedies or ["close other programs, or give the job more memory"]
    else:
        remedies.append(f"lower {_LOWER.get(verb or '', _LOWER_OF_ANY)}")
    return f"run failed: the memory {where} is not enough{detail}; {', or '.join(remedies)}"


def _memory_limit() -> list[int]:
    """KiB of addresses that this process may have; nothing where there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if limit == resource.RLIM_INFINITY else [limit // 1024]


def _told_by_system(error: BaseException) -> str | None:
    """The message where the system refused a file or the like, None for any other error."""
    number, reason, path = None, None, None
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        text = ascii(error.object)[1:-1]
        return f"{text:.200}: cannot be written in this locale, whose encoding is {error.encoding}; set LC_ALL=C.UTF-8"
    if isinstance(error, OSError):
        number, reason, path = error.errno, error.strerror, error.filename
    elif code := _OS_ERROR.search(str(error)):
        number = int(code[1])
        reason = os.strerror(number)
    if reason is None or (number is not None and number not in _REMEDIES):
        return None
    shown = os.fsdecode(path) if isinstance(path, (str, bytes)) else "a file, which the system does not name"
    return f"{shown}: {reason}; {_OTHER_PATH if number is None else _REMEDIES[number]}"


def _kept_traceback(error: BaseException) -> str:
    """Where the traceback is, in a file that nobody else may read; the traceback itself, where none can be written."""
    text = "".join(traceback.format_exception(error))
    name = time.strftime(f"%Y-%m-%d_%H-%M-%S_{os.getpid()}.txt")
    for make_folder in (_own_folder, lambda: Path(tempfile.mkdtemp(prefix="artkv-"))):
        with suppress(OSError, UserError, ImportError):
            path = make_folder() / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"artkv {' '.join(map(repr, sys.argv[1:]))}\n{text}")
            return f"the traceback is in {path}; --debug shows it here"
    return text


def _own_folder() -> Path:
    from artkv.config.paths import user_cache  # imports pydantic, for which no other command need wait

    folder = user_cache() / "failures"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _forget(stream: Any) -> None:
    """Keeps Python from trying once more, at its end, to write to whom has gone."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def flush_output() -> None:
    """Writes what stdout still holds back, so that its errors are seen here and not at the process's end."""
    stream: Any = sys.stdout
    if stream is None:
        return
    try:
        stream.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        _forget(stream)
        raise OSError(error.errno, error.strerror, _OUTPUT) from None
