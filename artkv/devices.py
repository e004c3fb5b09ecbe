"""Which device a process computes on, and what keeps it from a GPU that is there."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from artkv.errors import UserError

# Values of CUDA_VISIBLE_DEVICES by which a user, a scheduler or a container shows no GPU.
_NO_DEVICES = ("", "-1", "none", "void", "nodevfiles")

# Says that DS_ACCELERATOR was set below, and by nobody else.
_OWN_ACCELERATOR = "ARTKV_OWN_DS_ACCELERATOR"

if os.environ.pop(_OWN_ACCELERATOR, None):  # of the process that started this one, on another host perhaps
    os.environ.pop("DS_ACCELERATOR", None)
if not torch.cuda.is_available() and "DS_ACCELERATOR" not in os.environ:
    # Before DeepSpeed is imported, by whatever library: it warns on each rank when it finds no GPU unasked.
    os.environ |= {"DS_ACCELERATOR": "cpu", _OWN_ACCELERATOR: "1"}

# PyTorch has its convolutions round float32 to TF32's 10 bits on GPUs that can, and no other product. Features would
# differ by that between a GPU and the CPU, which may fill one cache; what trains computes in bfloat16.
torch.backends.cudnn.allow_tf32 = False


def check_devices(devices: list[tuple[str, str]]) -> None:
    """Raises `UserError` unless all ranks' devices are of one kind and no GPU is two ranks'.

    devices: by rank, the device's name ("cpu", or what is unique to the GPU) and the host's.
    """
    on_cpu = {name == "cpu" for name, _ in devices}
    if len(on_cpu) > 1:
        rank = next(rank for rank, (name, _) in enumerate(devices) if name == "cpu")
        raise UserError(
            f"rank {rank} on {devices[rank][1]} finds no CUDA device, others have one; look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES there",
            on_all_ranks=True,
        )
    if True in on_cpu:
        return
    first_rank: dict[str, int] = {}
    for rank, (name, host) in enumerate(devices):
        other = first_rank.setdefault(name, rank)
        if other != rank:
            raise UserError(
                f"ranks {other} and {rank} on {host} have the same GPU; start at most one process a GPU, and under "
                "srun give all tasks all (--gres=gpu:N) or each task its own (--gpus-per-task=1)",
                on_all_ranks=True,
            )


def device_name(device: torch.device) -> str:
    """What tells this process's device from those of other ranks: "cpu", or an id of the GPU or of its part."""
    if device.type == "cpu":
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    part = visible if visible.startswith("MIG-") else ""  # parts of one GPU may all tell that GPU's id
    return f"{torch.cuda.get_device_properties(device).uuid}{part}"


def rank_device(local_rank: int) -> torch.device:
    """The device of this host's rank of that number: a GPU, or the CPU where there is none or none is shown.

    Raises `UserError` where there are fewer GPUs, or one that this torch cannot use or DeepSpeed is not to.
    """
    if not torch.cuda.is_available():
        if os.environ.get("DS_ACCELERATOR") == "cuda":
            raise UserError("environment: DS_ACCELERATOR=cuda, and no GPU is found here; unset it, or give cpu")
        _check_no_gpu_is_meant()
        return torch.device("cpu")
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        raise UserError(
            "environment: DS_ACCELERATOR=cpu, and a GPU is found here; unset it, or set CUDA_VISIBLE_DEVICES= too, to "
            "compute on the CPU"
        )
    count = torch.cuda.device_count()
    # Where each task sees its own GPU alone, as with `srun --gpus-per-task=1`, that one is number 0 to all. Whether
    # it is not the same one is found out when the ranks meet.
    index = 0 if count == 1 else local_rank
    if index >= count:
        raise UserError(
            f"environment: LOCAL_RANK={local_rank} but this host shows {count} CUDA device(s); start at most one "
            "process a GPU"
        )
    device = torch.device("cuda", index)
    check_kernels(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    torch.cuda.set_device(device)
    return device


def check_kernels(name: str, capability: tuple[int, int]) -> None:
    """Raises `UserError` unless this torch was built for GPUs of such a capability: its first kernel would fail."""
    built_for = torch.cuda.get_arch_list()
    found = [(kind, int(number[:-1]), int(number[-1])) for kind, number in map(_arch, built_for) if number]
    # Kernels run on later GPUs of the same generation, and PTX, which the driver compiles, on all later ones.
    fits = any(
        (major, minor) <= capability and (kind == "compute" or major == capability[0]) for kind, major, minor in found
    )
    if found and not fits:
        raise UserError(
            f"{name} (sm_{capability[0]}{capability[1]}): torch {torch.__version__} has kernels for "
            f"{', '.join(built_for)} alone; install a torch that was built for it, or set CUDA_VISIBLE_DEVICES= to "
            "compute on the CPU"
        )


def _arch(name: str) -> tuple[str, str]:
    """Kind and number of `sm_90`, `sm_90a` or `compute_120`; of another's names, such as `gfx90a`, no number."""
    kind, _, number = name.partition("_")
    return kind, number.rstrip("af") if kind in ("sm", "compute") else ""


def _check_no_gpu_is_meant() -> None:
    """Raises `UserError` where this machine has an NVIDIA GPU, and torch none: else a CPU would be busy for days."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # What is no GPU hides all that comes after it.
    shows_none = visible is not None and visible.partition(",")[0].strip().lower() in _NO_DEVICES
    if shows_none or not _has_nvidia_gpu():
        return
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} was built without CUDA; install a build with it"
    else:
        try:
            torch.cuda.init()
            reason = "it says not why"
        except Exception as error:  # RuntimeError, AssertionError, torch.AcceleratorError
            reason = str(error).strip().partition("\n")[0].rstrip(".")
        if visible is not None:
            reason += f"; CUDA_VISIBLE_DEVICES={visible}: is that one of the GPUs here?"
        reason += (
            f"; torch {torch.__version__} is for CUDA {torch.version.cuda}: see that the driver is of that or later "
            "(nvidia-smi)"
        )
    raise UserError(
        f"environment: this machine has an NVIDIA GPU that torch cannot use: {reason}; or set CUDA_VISIBLE_DEVICES= to "
        "compute on the CPU"
    )


def _has_nvidia_gpu() -> bool:
    """Whether there is one that this process may use: a job or container may have the file and not the right."""
    candidates = [*Path("/dev").glob("nvidia[0-9]*")]
    if Path("/usr/lib/wsl/lib/libcuda.so.1").exists():  # of Windows' driver, without which WSL's GPU is another maker's
        candidates.append(Path("/dev/dxg"))
    for path in candidates:
        with suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            return True
    return False
