"""Devices and dtypes are chosen by arithmetic that the errors show."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.engine.catalogue.placement import Device, choose_device, choose_dtype, place, visible_devices
from cachegraph.engine.spec import DType, ModelSpec
from cachegraph.errors import ConfigError, ModelError

GB = 10**9
CPU = Device("cpu", 16 * GB, "float32")
SMALL, LARGE = Device("cuda:0", 3 * GB, "bfloat16"), Device("cuda:1", 8 * GB, "bfloat16")
OLD = Device("cuda:0", 8 * GB, "float16")


def test_auto_takes_the_gpu_with_most_free_memory() -> None:
    placed = choose_device("auto", 10**9, "auto", [SMALL, LARGE, CPU])
    assert (placed.device, placed.dtype, placed.bytes) == ("cuda:1", "bfloat16", 2_200_000_000)


def test_auto_falls_to_the_cpu_and_its_dtype_where_no_gpu_has_room() -> None:
    placed = choose_device("auto", 36 * 10**8, "auto", [SMALL, CPU])
    assert (placed.device, placed.dtype) == ("cpu", "float32")


def test_a_gpu_needs_room_for_what_stays_of_a_model_and_the_cpu_for_all_that_is_read() -> None:
    placed = choose_device("auto", 2 * 10**9, "auto", [SMALL, CPU], kept=10**9)
    assert (placed.device, placed.bytes) == ("cuda:0", 2_200_000_000)
    assert choose_device("cpu", 2 * 10**9, "auto", [SMALL, CPU], kept=10**9).bytes == 8_800_000_000
    with pytest.raises(ModelError, match=r"1\.5 B parameters x 2 bytes .* cuda:0 has 3\.00 GB free"):
        choose_device("cuda", 2 * 10**9, "auto", [SMALL, CPU], kept=15 * 10**8)


def test_explicit_values_win() -> None:
    assert choose_device("cpu", 10**6, "bfloat16", [LARGE, CPU]).device == "cpu"
    assert choose_device("cuda:0", 10**6, "auto", [SMALL, LARGE, CPU]).device == "cuda:0"
    assert choose_dtype("float32", LARGE) == "float32"
    assert choose_dtype("auto", OLD) == "float16"


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    message = r"in bfloat16 it needs 5\.72 GB = 2\.6 B parameters x 2 bytes \+ 10 %, cuda:0 has 3\.00 GB free"
    with pytest.raises(ModelError, match=message):
        choose_device("cuda", 26 * 10**8, "auto", [SMALL, CPU])


def test_a_device_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no device 'cuda:3' here; this machine has: cuda:0, cpu"):
        choose_device("cuda:3", 1, "auto", [SMALL, CPU])


@given(
    parameters=st.integers(1, 10**11),
    free=st.lists(st.integers(0, 10**11), min_size=1, max_size=5),
    dtype=st.sampled_from(["auto", "bfloat16", "float32"]),
)
def test_what_is_placed_fits_and_what_is_refused_fits_nowhere(parameters: int, free: list[int], dtype: DType) -> None:
    devices = [Device(f"cuda:{index}", each, "bfloat16") for index, each in enumerate(free[1:])]
    devices.append(Device("cpu", free[0], "float32"))
    room = {device.name: device.free for device in devices}
    try:
        placed = choose_device("auto", parameters, dtype, devices)
    except ModelError:
        for device in devices:
            assert parameters * (4 if choose_dtype(dtype, device) == "float32" else 2) * 1.1 > device.free * 0.999
    else:
        assert placed.bytes <= room[placed.device]


def test_this_machine_has_a_cpu_with_memory_and_a_tiny_model_fits(tiny_folder: Path) -> None:
    cpu = visible_devices()[-1]
    assert cpu.name == "cpu"
    assert cpu.free > 0
    assert cpu.dtype in ("bfloat16", "float32")
    assert place(tiny_folder, ModelSpec(source="m", device="cpu")).dtype == cpu.dtype
