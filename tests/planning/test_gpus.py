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
        ("4090", "RTX 4090"),
        ("A10", "A10"),  # and not the A100s, whose names begin with it
    ],
)
def test_names_are_found_as_people_write_them(written: str, name: str) -> None:
    assert find_gpu(written).name == name


@pytest.mark.parametrize(("written", "problem"), [("RTX 9999", "is not in the table"), ("A100", "fits A100 40GB, A1")])
def test_other_names_are_the_users_error(written: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"--gpu '{written}': {problem}.*give one of: RTX 3060"):
        find_gpu(written)


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (6, "RTX 4060 8GB"),
        (8, "RTX 4060 8GB"),
        (12, "RTX 3060 12GB"),
        (24, "RTX 3090"),
        (48, "RTX A6000"),
        (100, "A100 80GB"),
        (200, "H200"),
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
    assert {gpu.name for gpu in GPUS if not gpu.has_bf16} == {"T4", "V100 16GB"}


def test_without_bfloat16_the_rate_is_float32s() -> None:
    # Cores x boost clock x 2 FLOP: 2560 x 1.59 GHz, 5120 x 1.38 GHz. Data sheets round.
    rates = {"T4": 2560 * 1.59e9 * 2, "V100 16GB": 5120 * 1.38e9 * 2}
    for name, peak_flops in rates.items():
        assert find_gpu(name).peak_flops == pytest.approx(peak_flops, rel=0.02)
