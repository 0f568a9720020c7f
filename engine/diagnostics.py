"""Facts about this machine and what the engine would do with them, for `cachegraph doctor`."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cachegraph import __version__
from cachegraph.common.paths import data_home, home, left_behind
from cachegraph.errors import CachegraphError

from .batching.kv_budget import PERCENT, VARIABLE, choose_budget
from .catalogue.catalogue import load_catalogue
from .catalogue.inventory import inventory
from .catalogue.placement import Device, visible_devices

__all__ = ["DeviceFacts", "Machine", "budget_words", "examine", "installed", "processor"]

# Instructions that decide how fast a CPU computes a model.
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "neon", "sve", "bf16")


@dataclass(frozen=True)
class DeviceFacts:
    """A device, the dtype that `auto` takes there, and how much KV an engine on it may hold."""

    name: str
    free_bytes: int
    dtype: str
    kv_budget_bytes: int


@dataclass
class Machine:
    """Everything is a plain value. `problems` are sentences; without any, models can be run here."""

    versions: dict[str, str] = field(default_factory=dict)
    processor: str = ""
    cores: int = 0
    threads: int = 0
    features: list[str] = field(default_factory=list)
    kernels: str = ""
    devices: list[DeviceFacts] = field(default_factory=list)
    auto: str = ""
    models: dict[str, int] = field(default_factory=dict)  # those on this disk, and their bytes
    home: str = ""  # of models and kernels
    data: str = ""  # of runs, sessions and fusers
    home_free_bytes: int = 0
    temporary: str = ""
    temporary_free_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what to look at, though models run


def examine() -> Machine:
    """Look at everything; what can't be had is a problem, not an error."""
    machine = Machine(versions=_versions())
    for look in (_look_at_torch, _look_at_devices, _look_at_disk, _look_at_old_files, _look_at_models):
        try:
            look(machine)
        except CachegraphError as error:
            machine.problems.append(str(error))
        except ImportError as error:
            machine.problems.append(f"{error.name or 'a package'} can't be imported ({error}); reinstall cachegraph")
    return machine


def installed(name: str) -> str | None:
    """A package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    others = {name: installed(name) or "missing" for name in ("torch", "transformers", "anyio")}
    return {"cachegraph": __version__, "python": platform.python_version(), **others}


def _look_at_torch(machine: Machine) -> None:
    import psutil
    import torch

    machine.processor = processor()
    machine.cores = psutil.cpu_count(logical=False) or 0
    machine.threads = torch.get_num_threads()
    machine.features = _features(torch)
    from .kernels import backend

    machine.kernels = backend("cpu").status()
    if torch.cuda.is_available():
        machine.kernels += f"; on GPUs {backend('cuda').status()}"


def _features(torch: Any) -> list[str]:
    if not hasattr(torch.cpu, "get_capabilities"):
        return []  # older versions of torch have no public way to ask
    can = torch.cpu.get_capabilities()
    return [name for name in FEATURES if can.get(name, False)]


def processor() -> str:
    """What the CPU is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _look_at_devices(machine: Machine) -> None:
    devices = visible_devices()
    machine.devices = [
        DeviceFacts(device.name, device.free, device.dtype, choose_budget(None, [device.name])) for device in devices
    ]
    machine.auto = _what_auto_does(devices)


def _what_auto_does(devices: list[Device]) -> str:
    gpus = [device for device in devices if device.name.startswith("cuda:")]
    first = (
        max(gpus, key=lambda device: device.free)
        if gpus
        else next(device for device in devices if device.name == "cpu")
    )
    where = "the GPU with most free memory, where the model fits it" if gpus else "there is no CUDA GPU"
    native = "it computes in it" if first.dtype == "bfloat16" else "it does not compute in bfloat16"
    return f"{first.name} ({where}) in {first.dtype} ({native})"


def _look_at_disk(machine: Machine) -> None:
    place = home()
    machine.data = str(data_home())
    machine.home, machine.temporary = str(place), tempfile.gettempdir()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    machine.home_free_bytes = shutil.disk_usage(existing).free
    machine.temporary_free_bytes = shutil.disk_usage(machine.temporary).free
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        machine.problems.append(
            f"can't write in {machine.home!r} ({error.strerror}); point CACHEGRAPH_HOME to a folder of yours"
        )


def _look_at_old_files(machine: Machine) -> None:
    for old, new in left_behind():
        machine.notes.append(
            f"an earlier version left {str(old)!r}, which is not used beside {str(new)!r}; to see its runs set "
            f"CACHEGRAPH_STORE to it, else delete it"
        )


def _look_at_models(machine: Machine) -> None:
    machine.models = {item.name: item.bytes or 0 for item in inventory(load_catalogue()) if item.folder is not None}


def budget_words() -> str:
    """Where the budgets of KV memory come from."""
    if named := os.environ.get(VARIABLE):
        return f"{VARIABLE}={named}"
    return f"{PERCENT['cuda']} % of what a GPU has free, {PERCENT['cpu']} % of a CPU's"
