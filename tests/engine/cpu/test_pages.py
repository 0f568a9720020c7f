"""Memory in large pages is memory like any other."""

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from cachegraph.engine.cpu import huge_pages
from cachegraph.engine.cpu.huge_pages import FilePages, LargePages


def test_tensors_lie_apart_and_on_lines_of_the_caches() -> None:
    room = LargePages()
    shapes = [(3, 5), (64, 7), (1,), (0, 4), (700, 1000), (9, 9)]
    taken = [room.empty(*shape, dtype=dtype) for shape in shapes for dtype in (torch.int8, torch.bfloat16)]
    for index, tensor in enumerate(taken):
        tensor.fill_(index)
    for index, tensor in enumerate(taken):
        assert (tensor == index).all()
        assert tensor.data_ptr() % 64 == 0 or tensor.numel() == 0
    assert [tuple(tensor.shape) for tensor in taken[::2]] == shapes


def test_one_that_is_larger_than_what_is_asked_for_at_once_is_whole() -> None:
    size = huge_pages._AT_ONCE + 5
    tensor = LargePages().empty(size, dtype=torch.uint8)
    tensor[-1] = 1
    assert len(tensor) == size


def test_memory_stays_as_long_as_a_tensor_and_no_longer() -> None:
    def mapped() -> int:
        found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) // 1024

    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("only Linux is asked for large pages")
    gc.collect()
    before = mapped()
    tensor = LargePages().empty(2**29, dtype=torch.uint8)
    assert mapped() > before + 500
    del tensor
    assert mapped() < before + 100


def test_a_system_that_has_none_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert LargePages().empty(4, 4, dtype=torch.float32).fill_(1).sum() == 16


def test_a_system_that_has_them_is_asked_for_them() -> None:
    mappings = Path("/proc/self/smaps")
    if not Path("/sys/kernel/mm/transparent_hugepage").exists() or not mappings.exists():
        pytest.skip("this system has no large pages")
    tensor = LargePages().empty(2**26, dtype=torch.uint8)
    flags, here = "", False
    for line in mappings.read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(head[1], 16) <= tensor.data_ptr() < int(head[2], 16)
        elif line.startswith("VmFlags") and here:
            flags = line
    assert " hg" in flags


def resident(path: Path) -> int:
    """How many bytes of a file this process has in its memory."""
    found = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_pages_of_a_file_are_given_back_and_come_again(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("the system doesn't say what a process has mapped")
    numbers = torch.arange(2**20, dtype=torch.int32)
    path = tmp_path / "numbers"
    path.write_bytes(numbers.numpy().tobytes())
    mapped = torch.from_file(str(path), shared=False, size=2**20, dtype=torch.int32)
    assert torch.equal(mapped, numbers)
    before = resident(path)
    FilePages().release(mapped[1:-1])
    assert resident(path) < before / 4
    assert torch.equal(mapped, numbers)


def test_memory_that_was_written_to_stays(tmp_path: Path) -> None:
    """Both what no file backs and a private view of a file that has changed."""
    path = tmp_path / "numbers"
    path.write_bytes(bytes(2**22))
    mapped = torch.from_file(str(path), shared=False, size=2**20, dtype=torch.int32)
    mapped[5] = 7
    anonymous = torch.full((2**22,), 3, dtype=torch.uint8)
    for tensor in (mapped, anonymous):
        FilePages().release(tensor)
    assert int(mapped[5]) == 7
    assert bool((anonymous == 3).all())
