"""Which device a rank gets, and what is said where a GPU is there and cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from artkv import devices
from artkv.devices import check_devices, check_kernels
from artkv.errors import UserError


def test_convolutions_in_float32_are_not_in_tf32() -> None:
    assert not torch.backends.cudnn.allow_tf32  # which PyTorch allows


def test_two_ranks_on_one_gpu_and_a_rank_without_one_are_told() -> None:
    check_devices([("cpu", "n1"), ("cpu", "n1")])
    check_devices([("gpu-a", "n1"), ("gpu-b", "n1"), ("gpu-c", "n2")])
    with pytest.raises(UserError, match="ranks 0 and 2 on n1 have the same GPU"):
        check_devices([("gpu-a", "n1"), ("gpu-b", "n1"), ("gpu-a", "n1")])
    with pytest.raises(UserError, match="rank 1 on n2 finds no CUDA device"):
        check_devices([("gpu-a", "n1"), ("cpu", "n2")])


def test_deepspeed_is_not_told_to_look_for_a_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_has_nvidia_gpu", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(UserError, match="environment: DS_ACCELERATOR=cuda, and no GPU is found here; unset it, or"):
        devices.rank_device(0)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert devices.rank_device(0) == torch.device("cpu")


@pytest.mark.parametrize(("count", "local_rank", "index"), [(1, 0, 0), (1, 3, 0), (4, 3, 3)])
def test_a_task_that_sees_one_gpu_takes_it_whatever_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, count: int, local_rank: int, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    assert devices.rank_device(local_rank) == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"LOCAL_RANK=4 but this host shows 2 CUDA device\(s\)"):
        devices.rank_device(4)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(UserError, match=r"DS_ACCELERATOR=cpu, and a GPU is found here; unset it, or set CUDA_VISIBLE"):
        devices.rank_device(0)


@pytest.fixture
def unusable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of which torch says that its driver is too old."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12080).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "_has_nvidia_gpu", lambda: True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("unusable_gpu")
def test_a_gpu_that_torch_cannot_use_is_told_in_place_of_days_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as told:
        devices.rank_device(0)
    for words in (
        "too old (found version 12080)",
        "for CUDA 13.0",
        "nvidia-smi",
        "CUDA_VISIBLE_DEVICES= to",
    ):
        assert words in str(told.value)
    assert "\n" not in str(told.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=7: is that one of the GPUs here"):
        devices.rank_device(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="was built without CUDA; install a build with it"):
        devices.rank_device(0)


@pytest.mark.usefixtures("unusable_gpu")
@pytest.mark.parametrize("visible", ["", "-1", " NoDevFiles", "-1,-1"])
def test_who_shows_no_gpu_gets_the_cpu(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.rank_device(0) == torch.device("cpu")


def test_a_file_that_may_not_be_opened_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a job that was given none, on a node that has some."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").write_text("")
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    assert not devices._has_nvidia_gpu()
    (tmp_path / "dev/nvidia0").write_text("")
    assert devices._has_nvidia_gpu()

    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(devices.os, "open", refused)
    assert not devices._has_nvidia_gpu()


def test_in_wsl_it_is_windows_driver_that_says_whose_the_gpu_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").write_text("")
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    assert not devices._has_nvidia_gpu()
    (tmp_path / "usr/lib/wsl/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/wsl/lib/libcuda.so.1").write_text("")
    assert devices._has_nvidia_gpu()


@pytest.mark.parametrize(("given", "kept"), [(None, False), ("cpu", True)])
def test_a_child_on_a_host_with_a_gpu_does_not_inherit_what_artkv_told_deepspeed(given: str | None, kept: bool) -> None:
    """What a user has set it inherits."""
    program = (
        "import os, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "import artkv.devices\n"
        "assert os.environ['DS_ACCELERATOR'] == 'cpu'\n"
        "torch.cuda.is_available = lambda: True\n"
        "import importlib; importlib.reload(artkv.devices)\n"
        "print(os.environ.get('DS_ACCELERATOR'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if "DS_ACCELERATOR" not in name}
    if given is not None:
        environment["DS_ACCELERATOR"] = given
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["cpu" if kept else "None"]


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((8, 9), ["sm_75", "sm_80", "sm_86", "sm_90"], True),
        ((12, 0), ["sm_90a", "sm_120"], True),
        ((12, 0), ["sm_80", "sm_90", "compute_90"], True),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((6, 1), ["sm_75", "compute_75"], False),
        ((9, 0), ["gfx90a"], True),
        ((9, 0), [], True),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_told(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str], fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    if fits:
        return check_kernels("a GPU", capability)
    with pytest.raises(UserError, match=rf"a GPU \(sm_{capability[0]}{capability[1]}\): torch .* has kernels for sm_"):
        check_kernels("a GPU", capability)
