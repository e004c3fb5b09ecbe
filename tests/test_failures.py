"""How commands end: one message, an exit code, and no traceback but in a file of the user's own."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import artkv.cli as cli
from artkv.errors import Preempted, RunFailed, UserError
from artkv.failures import check_surroundings, exit_code, for_terminal
from artkv.run_folder.state_record import cause_of, is_lost_peer


def raised(action: Callable[[], Any]) -> BaseException:
    """What `action` raises, in the library that raises it."""
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def absent() -> None:
    open("/absent/file", "rb").close()


def full() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("action", "code", "message"),
    [
        (absent, 1, "artkv: /absent/file: No such file or directory; give a path that is there\n"),
        (full, 1, "No space left on device; free some space"),
        (lambda: os.listdir("/dev/null"), 1, "artkv: /dev/null: Not a directory; give a path whose"),
        (lambda: Path("/").read_text(), 1, "artkv: /: Is a directory; give a file"),
        (lambda: Path("n" * 300).read_text(), 1, "File name too long; give a shorter path"),
        (
            lambda: save_file({"a": torch.zeros(1)}, "/absent/x.safetensors"),
            1,
            "No such file or directory; give a path",
        ),
        (
            lambda: np.empty(10**15),
            3,
            "artkv: run failed: the memory of this machine is not enough (Unable to allocate",
        ),
        (lambda: torch.empty(10**15), 3, "the memory of this machine is not enough"),
        (lambda: torch.zeros(2**62, 2**62), 3, "the memory of this machine is not enough"),
        (
            lambda: (_ for _ in ()).throw(ImportError("libtorch_cpu.so: failed to map segment from shared object")),
            3,
            "run failed: the memory of this machine is not enough (libtorch_cpu.so: failed to map segment from shared "
            "object); close other programs, or give the job more memory\n",
        ),
        (lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried")), 3, "memory of the GPU"),
        (lambda: (_ for _ in ()).throw(MemoryError()), 3, "memory of this machine is not enough; lower training.batch"),
        (lambda: (_ for _ in ()).throw(UserError("place: wrong; remedy")), 1, "artkv: place: wrong; remedy\n"),
        (lambda: (_ for _ in ()).throw(RunFailed("diverged")), 3, "artkv: run failed: diverged\n"),
        (lambda: (_ for _ in ()).throw(Preempted(3, "SIGINT")), 75, "stopped by SIGINT after step 3, which is saved"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), 130, "artkv: interrupted\n"),
    ],
)
def test_what_is_foreseen_is_one_message(
    action: Callable[[], Any], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raised(action), "train", False) == code
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


def test_every_error_number_that_files_give_has_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG,
        errno.EISDIR, errno.ENOTDIR, errno.EMLINK, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ELOOP,
    ):  # fmt: skip
        assert exit_code(OSError(number, os.strerror(number), "some/path"), "train", False) == 1
        assert re.fullmatch(rf"artkv: some/path: {os.strerror(number)}; .+\n", capsys.readouterr().err)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("a\nb"), OSError("of a library"), RuntimeError("")])
def test_what_nobody_foresaw_leaves_its_traceback_in_a_file_of_the_users_own(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep() -> None:
        raise error

    monkeypatch.setenv("RANK", "3")
    assert exit_code(raised(deep), "train", False) == 3
    told = capsys.readouterr().err
    assert told.startswith(f"artkv: [rank 3] failed in a way that nobody foresaw: {type(error).__name__}: ")
    assert len(told.splitlines()) == 2
    path = Path(re.search(r"the traceback is in (\S+);", told)[1])  # type: ignore[index]
    assert "in deep" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_traceback_has_a_place_without_a_home_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARTKV_CACHE", "/dev/null/nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert exit_code(raised(lambda: {}["x"]), None, False) == 3
    assert f"the traceback is in {tmp_path}/artkv-" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/nowhere")
    assert exit_code(raised(lambda: {}["x"]), None, False) == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--debug", "status", "x"], ["status", "x", "--debug"], ["status", "x"]])
def test_debug_shows_the_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli._COMMANDS, "status", lambda options: {}["x"])
    assert cli.main(arguments) == 3
    assert ("Traceback" in capsys.readouterr().err) is ("--debug" in arguments)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\tc", "a\nb\tc"),
        ("a\rb\x00\x7f\x9b", "a\\rb\\x00\\x7f\\x9b"),
        ("Gemälde 🎨", "Gemälde 🎨"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcff", "\\udcff"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_nothing_that_is_printed_controls_a_terminal(text: str, shown: str) -> None:
    assert for_terminal(text) == shown


def test_wrong_usage_is_printable_too(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status", "x", "--\x1b[2J"], ["\x1b[2J"], ["evaluate", "--checkpoint", "x", "--split", "\x9b"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", capsys.readouterr().err)


def test_a_limit_of_memory_is_told_with_what_raises_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1_500_000 * 1024, -1))
    assert exit_code(ImportError("libtorch_cpu.so: failed to map segment from shared object"), "check", False) == 3
    assert capsys.readouterr().err.endswith("; raise `ulimit -v`, which is 1,500,000 KiB here\n")
    assert exit_code(MemoryError(), "check", False) == 3
    assert "raise `ulimit -v`, which is 1,500,000 KiB here, or lower training.batch_size" in capsys.readouterr().err
    assert exit_code(torch.OutOfMemoryError("CUDA out of memory. Tried"), "check", False) == 3
    assert "ulimit" not in capsys.readouterr().err
    assert exit_code(ImportError("cannot import name 'x'"), "check", True) == 3
    assert "nobody foresaw" in capsys.readouterr().err


def hear_control_c() -> None:
    """As at a terminal, also where these tests run behind a script, which bash starts deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def artkv(code: str, unbuffered: str = "", **options: Any) -> subprocess.Popen[str]:
    """`artkv status x`, whose command is this Python."""
    program = (
        "import signal, sys, time, os\nimport artkv.cli as cli\n"
        f"def command(options):\n    {code}\n    return 0\n"
        "cli._COMMANDS['status'] = command\nsys.exit(cli.main(['status', 'x']))\n"
    )
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_control_c}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        **defaults | options,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    process = artkv("[print('x' * 1000) for _ in range(1000)]", stdout=write)
    os.close(write)
    os.close(read)
    assert process.communicate()[1] == ""
    assert process.returncode == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("code", ["print('x')", "print('x', flush=True)", "print('x' * 100_000)"])
def test_an_output_that_is_full_is_told(code: str, unbuffered: str) -> None:
    with open("/dev/full", "w") as full_disk:
        process = artkv(code, unbuffered, stdout=full_disk)
        assert process.communicate()[1] == (
            "artkv: standard output: No space left on device; free some space, or write to another disk\n"
        )
    assert process.returncode == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_exit_code_tells_where_no_message_can_be_written(unbuffered: str) -> None:
    with open("/dev/full", "w") as full_disk:
        process = artkv("from artkv.errors import RunFailed; raise RunFailed('diverged')", unbuffered, stderr=full_disk)
        process.communicate()
    assert process.returncode == 3


def test_control_c_ends_a_command_with_one_line() -> None:
    process = artkv("print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "artkv: interrupted\n"
    assert process.returncode == 130


def test_a_second_control_c_ends_a_training_at_once() -> None:
    code = (
        "from artkv.training.preemption import StopRequests; stops = StopRequests(); stops.listen(signal.SIGINT); "
        "print('ready', flush=True)\n"
        "    while stops.reason is None: time.sleep(0.01)\n"
        "    print(stops.reason, flush=True); time.sleep(60)"
    )
    process = artkv(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "artkv: interrupted\n"
    assert process.returncode == 130
    assert time.monotonic() - began < 30


def test_a_training_that_ignores_control_c_from_its_start_goes_on_ignoring_it() -> None:
    """As one that a script starts behind itself: a Control-C is for the script."""
    code = (
        "from artkv.training.preemption import StopRequests; stops = StopRequests(); stops.listen(signal.SIGINT); "
        "os.kill(os.getpid(), signal.SIGINT); print(stops.reason)"
    )
    process = artkv(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert process.communicate() == ("None\n", "")


def test_a_rank_whose_peer_is_gone_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:52446. This is typically\nmore")
    monkeypatch.setenv("RANK", "1")
    assert exit_code(lost, "train", debug=False) == 3
    told = capsys.readouterr().err
    assert told.startswith("artkv: [rank 1] run failed: another rank is gone ([pair.cc:561] Connection closed by peer")
    assert told.count("\n") == 1
    monkeypatch.delenv("RANK")  # of one process it cannot be that
    assert exit_code(lost, "train", debug=True) == 3
    assert "nobody foresaw" in capsys.readouterr().err


NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL "
    "version 2.28.9\nncclSystemError: System call (e.g. socket, malloc) or external library call failed or device "
    "error. \nLast error:\n"
)
NO_SHARED_MEMORY = "Error while creating shared memory segment /dev/shm/nccl-x4Zf1b (size 9637888)"


def test_too_little_shared_memory_is_a_ranks_own_error_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container of Docker's without --shm-size, where NCCL speaks of a system error."""
    error = torch.distributed.DistBackendError(NCCL + NO_SHARED_MEMORY)
    monkeypatch.setenv("RANK", "1")
    assert exit_code(error, "train", debug=False) == 3
    told = capsys.readouterr().err
    assert f"artkv: [rank 1] run failed: /dev/shm is too small for NCCL ({NO_SHARED_MEMORY}); give" in told
    assert "--shm-size" in told
    assert told.count("\n") == 1
    assert not is_lost_peer(str(error))
    assert cause_of(error, rank=1, hosts=["n1", "n1"]).endswith(f"version 2.28.9: {NO_SHARED_MEMORY}")


def test_nccls_own_reason_is_told_of_a_peer_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = torch.distributed.DistBackendError(f"{NCCL}Call to connect returned Connection refused")
    monkeypatch.setenv("RANK", "1")
    assert exit_code(error, "train", debug=False) == 3
    told = capsys.readouterr().err
    assert "another rank is gone" in told
    assert "Call to connect returned Connection refused" in told
    assert "lost connection" in cause_of(error, rank=1, hosts=["n1", "n1"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HF_HUB_ETAG_TIMEOUT", "soon"), ("HF_HUB_DOWNLOAD_TIMEOUT", "x"), ("HF_HUB_DOWNLOAD_TIMEOUT", ""),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5"), ("HF_ENDPOINT", "http://[::bad"), ("HF_ENDPOINT", "http://127.0.0.1:99999"),
        ("HF_ENDPOINT", "ftp://x"), ("HF_ENDPOINT", "nonsense"), ("TORCH_DISTRIBUTED_DEBUG", "LOUD"),
        ("DS_ACCELERATOR", "banana"), ("DS_ACCELERATOR", "xpu"), ("ARTKV_CUDA_GRAPHS", "maybe"),
    ],
)  # fmt: skip
def test_a_variable_that_a_library_would_die_of_is_named(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^environment: {name}={re.escape(repr(text))}: .*; unset it, or give "):
        check_surroundings({name: text})


def test_too_few_threads_are_no_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (7, 7))
    assert exit_code(RuntimeError("can't start new thread"), "train", debug=False) == 3
    told = capsys.readouterr().err
    assert "no more threads can be started (can't start new thread); raise `ulimit -u`, which is 7 here" in told


def test_a_text_that_the_locale_cannot_write_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = UnicodeEncodeError("ascii", "b\xfccher/train.csv", 1, 2, "ordinal not in range(128)")
    assert exit_code(error, "check", debug=False) == 3  # not foreseen where file names are UTF-8
    capsys.readouterr()
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert exit_code(error, "check", debug=False) == 1
    assert capsys.readouterr().err == (
        "artkv: b\\xfccher/train.csv: cannot be written in this locale, whose encoding is ascii; set LC_ALL=C.UTF-8\n"
    )


def test_variables_that_libraries_understand_pass() -> None:
    for address in ("", "https://huggingface.co", "http://localhost:8080/", "http://[::1]:80/hub"):
        check_surroundings(
            {
                "HF_ENDPOINT": address,
                "HF_HUB_ETAG_TIMEOUT": "10",
                "TORCH_DISTRIBUTED_DEBUG": "detail",
                "DS_ACCELERATOR": "cpu",
            }
        )


def test_a_working_folder_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["status", str(tmp_path)]) == 1
    assert "the working folder: No such file or directory; change to one that is there" in capsys.readouterr().err
