import re

import pytest

from artkv.errors import UserError
from artkv.planning.device import Device
from artkv.planning.gpus import GIB, GPUS, find_gpu, gpu_named_by, gpu_of_device, gpu_of_memory


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 4060 8GB", "RTX 4060 8GB"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060 8GB"),
        ("rtx3090", "RTX 3090"),
        ("Tesla T4", "T4"),
        ("h100", "H100 SXM"),
        ("H100 PCIe", "H100 PCIe"),
        ("rtx4070tisuper", "RTX 4070 Ti SUPER"),
        ("4060", "RTX 4060 8GB"),  # and not a Ti
        ("RTX 4060 Ti 16 GB", "RTX 4060 Ti 16GB"),
        ("L40", "L40"),
        ("NVIDIA RTX 6000 Ada", "RTX 6000 Ada"),
        ("4090", "RTX 4090"),
        ("A10", "A10"),  # and not the A100s, whose names begin with it
    ],
)
def test_names_are_found_as_people_write_them(written: str, name: str) -> None:
    assert find_gpu(written).name == name


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("RTX 9999", "is not in the table"),
        ("A100", "fits A100 40GB, A1"),
        ("A1000", "is"),
        ("A40", "is not"),
        ("4060 Ti", "fits RTX"),
    ],
)
def test_other_names_are_the_users_error(written: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"--gpu '{written}': {problem}.*give one of: RTX 2080 Ti, RTX 3060"):
        find_gpu(written)


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (6, "RTX 4060 8GB"),
        (8, "RTX 4060 8GB"),
        (10, "RTX 3080 10GB"),
        (12, "RTX 3060 12GB"),
        (16, "RTX 4060 Ti 16GB"),
        (24, "A10G"),
        (48, "RTX A6000"),
        (80, "A100 80GB"),
        (100, "RTX PRO 6000"),
        (141, "H200"),
        (200, "B200"),
    ],
)
def test_the_nearest_gpu_by_memory_is_the_slowest_of_its_size(gib: int, name: str) -> None:
    assert gpu_of_memory(gib * GIB).name == name


def device(name: str, gib: float, has_bf16: bool = True) -> Device:
    return Device(name, round(gib * GIB), round(gib * GIB), has_bf16)


@pytest.mark.parametrize(
    ("name", "gib", "has_bf16", "listed"),
    [
        ("NVIDIA H200", 139, True, "H200"),
        ("NVIDIA H100 80GB HBM3", 79, True, "H100 SXM"),
        ("NVIDIA H100 PCIe", 79, True, "H100 PCIe"),
        ("NVIDIA H100 NVL", 93, True, "H100 NVL"),
        ("NVIDIA B200", 178, True, "B200"),
        ("NVIDIA A10G", 22, True, "A10G"),
        ("NVIDIA L40", 44, True, "L40"),
        ("NVIDIA RTX 6000 Ada Generation", 47, True, "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95, True, "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 95, True, None),  # of half the power
        ("NVIDIA RTX A4000", 16, True, "RTX A4000"),
        ("NVIDIA RTX A5000", 24, True, "RTX A5000"),
        ("NVIDIA GeForce RTX 3080", 10, True, "RTX 3080 10GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 16, True, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 8, True, "RTX 4060 Ti 8GB"),
        ("NVIDIA GeForce RTX 4070 Ti", 12, True, "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, True, "RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 4080 SUPER", 16, True, "RTX 4080 SUPER"),
        ("NVIDIA GeForce RTX 5070 Ti", 16, True, "RTX 5070 Ti"),
        ("NVIDIA GeForce RTX 5080", 16, True, "RTX 5080"),
        ("NVIDIA GeForce RTX 5090 D", 32, True, None),
        ("NVIDIA GeForce RTX 2080 Ti", 11, False, "RTX 2080 Ti"),
        ("NVIDIA A100-SXM4-40GB", 39, True, "A100 40GB"),  # and not the A10
        ("NVIDIA A100-PCIE-80GB", 79, True, "A100 80GB"),
        ("NVIDIA L40S", 44, True, "L40S"),  # and not the L4
        ("NVIDIA RTX A6000", 47, True, "RTX A6000"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 8, True, None),
        ("NVIDIA RTX A1000", 8, True, None),  # and not the A100
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20, True, None),
        ("Tesla T4", 15, False, "T4"),
        ("Tesla V100-SXM2-32GB", 32, False, "V100 16GB"),
        ("NVIDIA T400 4GB", 4, False, None),
        ("Quadro RTX 6000", 24, False, None),
        ("Quadro P400", 8, False, None),
    ],
)
def test_what_cuda_calls_a_device_is_found(name: str, gib: int, has_bf16: bool, listed: str | None) -> None:
    found = gpu_named_by(device(name, gib, has_bf16))
    assert (found and found.name) == listed
    if listed is not None:
        assert gpu_of_device(device(name, gib, has_bf16)).name == listed


def test_another_device_has_the_rates_of_the_nearest_that_computes_as_it_does() -> None:
    assert gpu_of_device(device("NVIDIA RTX A1000", 8)).name == "RTX 4060 8GB"
    for gib in (4, 16, 48):
        assert gpu_of_device(device("of tomorrow", gib)).has_bf16
        assert not gpu_of_device(device("of yesterday", gib, has_bf16=False)).has_bf16


def test_memory_alone_means_a_gpu_with_bfloat16() -> None:
    assert all(gpu_of_memory(gib * GIB).has_bf16 for gib in range(1, 200))


def test_links_have_their_known_rates() -> None:
    # PCIe 3.0, 4.0 and 5.0 x16: 15.75, 31.5 and 63 GB/s, of which 80% are assumed.
    rates = {gpu.name: gpu.copy_bytes_per_second / 1e9 for gpu in GPUS}
    assert rates["T4"] == pytest.approx(12.6, abs=0.02)
    assert rates["RTX 4060 8GB"] == pytest.approx(12.6, abs=0.02)
    assert rates["A100 80GB"] == pytest.approx(25.2, abs=0.02)
    assert rates["H100 SXM"] == pytest.approx(50.4, abs=0.02)


def test_every_figure_has_a_source() -> None:
    assert all("NVIDIA" in gpu.source for gpu in GPUS)
    assert {gpu.name for gpu in GPUS if not gpu.has_bf16} == {"RTX 2080 Ti", "T4", "V100 16GB"}


def test_computed_rates_are_cores_by_clock_by_128_flop() -> None:
    computed = 0
    for gpu in GPUS:
        if found := re.search(r"128 FLOP .*: (\d+) cores, ([\d.]+) GHz$", gpu.source):
            computed += 1
            # The table has a tenth of a TFLOP/s.
            assert gpu.peak_flops == pytest.approx(int(found[1]) * float(found[2]) * 1e9 * 128, abs=0.06e12), gpu.name
    assert computed > 10


@pytest.mark.parametrize(
    ("name", "cores", "gigahertz", "flop"),
    [
        ("RTX 3070", 184, 1.725, 128),
        ("RTX 3080 10GB", 272, 1.71, 128),
        ("RTX 3090", 328, 1.695, 128),
        ("RTX 4090", 512, 2.52, 128),
        ("RTX 5090", 680, 2.407, 128),
        ("L40", 568, 2.49, 128),
        ("A10G", 320, 1.71, 128),
        ("RTX A4000", 192, 1.56, 256),
        ("RTX A5000", 256, 1.695, 256),
        ("RTX A6000", 336, 1.8, 256),
        ("RTX 6000 Ada", 568, 2.505, 256),
        ("RTX PRO 6000", 752, 2.617, 256),
        ("A10", 288, 1.695, 256),
        ("A100 80GB", 432, 1.41, 512),
        ("H100 PCIe", 456, 1.62, 1024),
        ("H100 SXM", 528, 1.83, 1024),
    ],
)
def test_stated_rates_are_those_of_cores_and_clocks(name: str, cores: int, gigahertz: float, flop: int) -> None:
    # 0.3%: clocks and data sheets are rounded; the worst is the RTX 3090's 0.23%.
    assert find_gpu(name).peak_flops == pytest.approx(cores * gigahertz * 1e9 * flop, rel=3e-3)


def test_without_bfloat16_the_rate_is_float32s() -> None:
    # Cores x boost clock x 2 FLOP. Data sheets round, by 1% at most.
    rates = {"RTX 2080 Ti": 4352 * 1.545e9 * 2, "T4": 2560 * 1.59e9 * 2, "V100 16GB": 5120 * 1.38e9 * 2}
    for name, peak_flops in rates.items():
        assert find_gpu(name).peak_flops == pytest.approx(peak_flops, rel=0.02)
