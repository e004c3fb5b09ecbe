"""Common GPUs: memory, matmul rate and PCIe link, each from the vendor's papers."""

import re
from dataclasses import dataclass

from artkv.errors import UserError
from artkv.planning.device import Device

# Assumptions, not measurements.
# Matrix products of a training step reach about half of the peak that the data sheet gives for dense operands.
MATMUL_EFFICIENCY = 0.5
# Page-locked copies reach about 25 GB/s of the 31.5 GB/s of PCIe 4.0 x16; in the same ratio on other links.
PCIE_EFFICIENCY = 0.8
# Encoded bytes/s of one lane in one direction (PCI-SIG: 8, 16 and 32 GT/s, 128 bits in 130).
_LANE_BYTES_PER_SECOND = {3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130}

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU as its vendor describes it.

    memory_bytes: nominal; what CUDA reports is up to a few percent less, most where ECC takes a part.
    peak_flops: FLOP/s of dense matrix products in what `model.dtype: auto` is there, which is bfloat16 with fp32
    accumulation, or float32 where has_bf16 is False.
    pcie_generation, pcie_lanes: of the card; a slot with fewer makes it slower.
    has_bf16: False where products in bfloat16 are emulated; what fp16 would reach there is not artkv's.
    source: where the figures are from.
    """

    name: str
    memory_bytes: int
    peak_flops: float
    pcie_generation: int
    pcie_lanes: int
    has_bf16: bool
    source: str

    @property
    def effective_flops(self) -> float:
        """Assumed rate of matrix products, FLOP/s."""
        return self.peak_flops * MATMUL_EFFICIENCY

    @property
    def copy_bytes_per_second(self) -> float:
        """Assumed rate of page-locked copies from host to device."""
        return _LANE_BYTES_PER_SECOND[self.pcie_generation] * self.pcie_lanes * PCIE_EFFICIENCY


_AMPERE = "NVIDIA Ampere GA102 GPU Architecture whitepaper, v2"
_ADA = "NVIDIA Ada GPU Architecture whitepaper, v2"
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper"
# Cards that a whitepaper's table leaves out: tensor cores x boost clock x 128 FLOP, the rate per core and clock
# of the GeForce cards in it (RTX 3090: 328 x 1.695 GHz x 128 = 71 T; RTX 4090: 512 x 2.52 GHz x 128 = 165 T). RTX A and
# RTX 6000 accumulate in fp32 at twice that (RTX A6000: 336 x 1.8 GHz x 256 = 154.8 T); an L40 and A10G do not.
_COMPUTED = "NVIDIA's product page, 128 FLOP a clock and tensor core as in"

GPUS = (
    Gpu("RTX 2080 Ti", 11 * GIB, 13.4e12, 3, 16, False, "NVIDIA Turing GPU Architecture whitepaper, reference (fp32)"),
    Gpu("RTX 3060 12GB", 12 * GIB, 25.5e12, 4, 16, True, f"{_COMPUTED} {_AMPERE}: 112 cores, 1.78 GHz"),
    Gpu("RTX 3070", 8 * GIB, 40.6e12, 4, 16, True, _AMPERE),
    Gpu("RTX 3080 10GB", 10 * GIB, 59.5e12, 4, 16, True, _AMPERE),
    Gpu("RTX 3090", 24 * GIB, 71e12, 4, 16, True, _AMPERE),
    Gpu("RTX 4060 8GB", 8 * GIB, 30.2e12, 4, 8, True, f"{_COMPUTED} {_ADA}: 96 cores, 2.46 GHz"),
    Gpu("RTX 4060 Ti 8GB", 8 * GIB, 44.1e12, 4, 8, True, f"{_COMPUTED} {_ADA}: 136 cores, 2.535 GHz"),
    Gpu("RTX 4060 Ti 16GB", 16 * GIB, 44.1e12, 4, 8, True, f"{_COMPUTED} {_ADA}: 136 cores, 2.535 GHz"),
    Gpu("RTX 4070", 12 * GIB, 58.3e12, 4, 16, True, f"{_COMPUTED} {_ADA}: 184 cores, 2.475 GHz"),
    Gpu("RTX 4070 SUPER", 12 * GIB, 71e12, 4, 16, True, f"{_COMPUTED} {_ADA}: 224 cores, 2.475 GHz"),
    Gpu("RTX 4070 Ti", 12 * GIB, 80.2e12, 4, 16, True, f"{_COMPUTED} {_ADA}: 240 cores, 2.61 GHz"),
    Gpu("RTX 4070 Ti SUPER", 16 * GIB, 88.2e12, 4, 16, True, f"{_COMPUTED} {_ADA}: 264 cores, 2.61 GHz"),
    Gpu("RTX 4080", 16 * GIB, 97.5e12, 4, 16, True, f"{_COMPUTED} {_ADA}: 304 cores, 2.505 GHz"),
    Gpu("RTX 4080 SUPER", 16 * GIB, 104.4e12, 4, 16, True, f"{_COMPUTED} {_ADA}: 320 cores, 2.55 GHz"),
    Gpu("RTX 4090", 24 * GIB, 165.2e12, 4, 16, True, _ADA),
    Gpu("RTX 5060 Ti 8GB", 8 * GIB, 47.4e12, 5, 8, True, f"{_COMPUTED} {_BLACKWELL}: 144 cores, 2.572 GHz"),
    Gpu("RTX 5060 Ti 16GB", 16 * GIB, 47.4e12, 5, 8, True, f"{_COMPUTED} {_BLACKWELL}: 144 cores, 2.572 GHz"),
    Gpu("RTX 5070", 12 * GIB, 61.7e12, 5, 16, True, f"{_COMPUTED} {_BLACKWELL}: 192 cores, 2.512 GHz"),
    Gpu("RTX 5070 Ti", 16 * GIB, 87.9e12, 5, 16, True, f"{_COMPUTED} {_BLACKWELL}: 280 cores, 2.452 GHz"),
    Gpu("RTX 5080", 16 * GIB, 112.6e12, 5, 16, True, f"{_COMPUTED} {_BLACKWELL}: 336 cores, 2.617 GHz"),
    Gpu("RTX 5090", 32 * GIB, 209.5e12, 5, 16, True, _BLACKWELL),
    Gpu("T4", 16 * GIB, 8.1e12, 3, 16, False, "NVIDIA T4 data sheet (fp32)"),
    Gpu("V100 16GB", 16 * GIB, 14e12, 3, 16, False, "NVIDIA V100 data sheet, PCIe card (fp32)"),
    Gpu("A10", 24 * GIB, 125e12, 4, 16, True, "NVIDIA A10 data sheet"),
    Gpu("A10G", 24 * GIB, 70e12, 4, 16, True, "NVIDIA A10G data sheet (140 with sparsity)"),
    Gpu("L4", 24 * GIB, 121e12, 4, 16, True, "NVIDIA L4 data sheet (242 with sparsity)"),
    Gpu("RTX A4000", 16 * GIB, 76.7e12, 4, 16, True, "NVIDIA RTX A4000 data sheet (153.4 with sparsity)"),
    Gpu("RTX A5000", 24 * GIB, 111.1e12, 4, 16, True, "NVIDIA RTX A5000 data sheet (222.2 with sparsity)"),
    Gpu("RTX A6000", 48 * GIB, 154.8e12, 4, 16, True, _AMPERE),
    Gpu("RTX 6000 Ada", 48 * GIB, 364.2e12, 4, 16, True, "NVIDIA RTX 6000 Ada data sheet (1,457 in fp8 with sparsity)"),
    Gpu("RTX PRO 6000", 96 * GIB, 503.8e12, 5, 16, True, "NVIDIA RTX Blackwell PRO GPU Architecture whitepaper"),
    Gpu("L40", 48 * GIB, 181e12, 4, 16, True, "NVIDIA L40 data sheet (362 with sparsity)"),
    Gpu("L40S", 48 * GIB, 362e12, 4, 16, True, "NVIDIA L40S data sheet (733 with sparsity)"),
    Gpu("A100 40GB", 40 * GIB, 312e12, 4, 16, True, "NVIDIA A100 data sheet"),
    Gpu("A100 80GB", 80 * GIB, 312e12, 4, 16, True, "NVIDIA A100 data sheet"),
    Gpu("H100 PCIe", 80 * GIB, 756e12, 5, 16, True, "NVIDIA H100 data sheet (1,513 with sparsity)"),
    Gpu("H100 SXM", 80 * GIB, 989e12, 5, 16, True, "NVIDIA H100 data sheet (1,979 with sparsity)"),
    Gpu("H100 NVL", 94 * GIB, 835e12, 5, 16, True, "NVIDIA H100 data sheet (1,671 with sparsity)"),
    Gpu("H200", 141 * GIB, 989e12, 5, 16, True, "NVIDIA H200 data sheet, SXM (1,979 with sparsity)"),
    Gpu("B200", 180 * GIB, 2250e12, 5, 16, True, "NVIDIA HGX B200 data sheet (4,500 with sparsity)"),
)

# Words of a device's name that say nothing of how fast it computes.
_FORM = re.compile(r"pcie|sxm\d?|hbm\d\w?|gpu|generation|blackwell|workstation|server|edition")
_SIZE = re.compile(r"\d+gb")


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, written with or without spaces, capitals, 'NVIDIA', 'GeForce' and 'RTX'.

    Its memory may be left out where it tells no two of them apart.

    Raises:
        UserError: if it is in no table, or the name fits more than one.
    """
    words = _words(name)
    written = "".join(words)
    found = (
        [gpu for gpu in GPUS if "".join(_words(gpu.name)) == written]
        or [gpu for gpu in GPUS if "".join(_model(gpu)) == written]
        or [gpu for gpu in GPUS if words and set(words) <= set(_words(gpu.name))]
    )
    if len(found) != 1:
        problem = "is not in the table" if not found else f"fits {', '.join(gpu.name for gpu in found)}"
        raise UserError(f"--gpu {name!r}: {problem}; give one of: {', '.join(gpu.name for gpu in GPUS)}")
    return found[0]


def gpu_of_memory(memory_bytes: int, has_bf16: bool = True) -> Gpu:
    """The listed GPU with or without bfloat16 whose memory is nearest to that, the slowest one if several are."""
    listed = [gpu for gpu in GPUS if gpu.has_bf16 == has_bf16]
    return min(listed, key=lambda gpu: (abs(gpu.memory_bytes - memory_bytes), gpu.peak_flops))


def gpu_named_by(device: Device) -> Gpu | None:
    """The listed GPU that a device's name, such as NVIDIA H100 80GB HBM3, means; None: it is not in the table.

    Names are compared word by word: an RTX A1000 is no A100, an RTX 4060 Ti no RTX 4060, a laptop's GPU not the card of
    that number, and a slice of a GPU (MIG) not the whole.
    """
    words = [word for word in _words(device.name) if not _SIZE.fullmatch(word)]
    named = [
        gpu
        for gpu in GPUS
        if gpu.has_bf16 == device.has_bf16
        and words[: len(_model(gpu))] == _model(gpu)
        and all(_FORM.fullmatch(word) for word in words[len(_model(gpu)) :])
    ]
    # H100 PCIe before H100; of one in two sizes the nearer.
    return min(named, key=lambda gpu: (-len(_model(gpu)), abs(gpu.memory_bytes - device.memory_bytes)), default=None)


def gpu_of_device(device: Device) -> Gpu:
    """The listed GPU whose rates a device is taken to have: that of its name, else the nearest by memory.

    It has bfloat16 where the device has it, and not where not.
    """
    return gpu_named_by(device) or gpu_of_memory(device.memory_bytes, device.has_bf16)


def _words(name: str) -> list[str]:
    """Words of a name in small letters, without those that nearly all names begin with."""
    return re.findall("[a-z0-9]+", re.sub("nvidia|geforce|tesla|rtx", " ", name.lower()))


def _model(gpu: Gpu) -> list[str]:
    """Words of a listed name without its memory; H100 alone is the SXM."""
    return [word for word in _words(gpu.name) if word != "sxm" and not _SIZE.fullmatch(word)]
