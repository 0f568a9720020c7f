"""Attention over caches in parts, against attention written out; and that GPUs can run what is interpreted here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from cachegraph.engine.gpu import kernels

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


class Case(NamedTuple):
    kv_heads: int
    group: int
    dim: int
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False


CASES = {
    "grouped heads": Case(2, 3, 16),
    "one head": Case(1, 1, 64),
    "a head_dim that is no power of two": Case(1, 2, 40),
    "a small head_dim": Case(2, 2, 8),
    "a window": Case(1, 4, 16, window=30),
    "capped scores": Case(2, 2, 16, softcap=2.0),
    "sinks": Case(1, 2, 16, has_sinks=True),
    "all of it": Case(1, 2, 16, window=50, softcap=3.0, has_sinks=True),
}
LENGTHS = [[0], [5, 3], [0, 70, 1, 20], [40]]  # by row: entries of its segments; the last is its tail


class Rows:
    """Random caches, laid out in several ways, and the tables that say where they are."""

    def __init__(self, case: Case, dtype: torch.dtype):
        self._random = torch.Generator().manual_seed(0)
        self._case, self._dtype = case, dtype
        numbers, rows = [[0] * 8], []
        self.expected: list[tuple[Tensor, Tensor, Tensor]] = []  # by row: keys, values and positions of all it read
        self.tails: list[tuple[Tensor, Tensor]] = []
        self._kept: list[Tensor] = []
        for lengths in LENGTHS:
            first, parts = len(numbers), []
            for index, length in enumerate(lengths):
                is_tail = index == len(lengths) - 1
                room = length + 2 if is_tail else length
                keys, values = self._cache(room), self._cache(room).transpose(1, 2).contiguous().transpose(1, 2)
                positions = (torch.arange(room) + 80 * index).to(DEVICE)
                strides = [keys.stride(1), keys.stride(2), values.stride(1), values.stride(2)]
                numbers.append([keys.data_ptr(), values.data_ptr(), *strides, room, positions.data_ptr()])
                parts.append((keys[:, :, :length], values[:, :, :length], positions[:length]))
                if is_tail:
                    self.tails.append((keys, values))
                self._kept += [keys, values, positions]
            rows.append([first, len(lengths), lengths[-1], 80 * len(lengths), 0, sum(lengths) + 1])
            keys_, values_, positions_ = zip(*parts, strict=True)
            self.expected.append((torch.cat(keys_, 2), torch.cat(values_, 2), torch.cat(positions_)))
        rows += [[0, 1, 0, 0, 0, 0]] * 4  # nobody's
        self.segments = torch.tensor(numbers, device=DEVICE)
        self.rows = torch.tensor(rows, device=DEVICE).T.contiguous()

    def _cache(self, count: int) -> Tensor:
        return self.random(1, self._case.kv_heads, count, self._case.dim)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random).to(DEVICE, self._dtype)


def attention(case: Case, query: Tensor, keys: Tensor, values: Tensor, near: Tensor, sinks: Tensor | None) -> Tensor:
    """(1, heads, 1, dim) of one row."""
    keys, values = (each.float().repeat_interleave(case.group, 1) for each in (keys, values))
    scores = query.float() @ keys.transpose(2, 3) * case.dim**-0.5
    if case.softcap is not None:
        scores = torch.tanh(scores / case.softcap) * case.softcap
    scores = scores.masked_fill(~near, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1)], -1)
    attended: Tensor = scores.softmax(-1)[..., : values.shape[2]] @ values
    return attended


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_every_row_attends_to_its_own_entries_and_writes_one(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    made = Rows(case, dtype)
    heads, count = case.kv_heads * case.group, len(LENGTHS) + 4
    query, keys = made.random(1, heads, count, case.dim), made.random(1, case.kv_heads, count, case.dim)
    values = made.random(1, count, case.kv_heads, case.dim).transpose(1, 2)
    sinks = made.random(heads) if case.has_sinks else None
    kernels.append(made.segments, made.rows, keys, values, case.window is not None)
    scale = case.dim**-0.5
    arguments = (case.kv_heads, scale, case.window, case.softcap, sinks)
    got = kernels.attend(made.segments, made.rows, query, *arguments)
    for row, (past_keys, past_values, positions) in enumerate(made.expected):
        new, used = slice(row, row + 1), LENGTHS[row][-1]
        assert torch.equal(made.tails[row][0][:, :, used], keys[:, :, row])
        assert torch.equal(made.tails[row][1][:, :, used], values[:, :, row])
        at = made.rows[3, row]
        near = at - torch.cat([positions, at[None]]) < (case.window or 10**9)
        seen = (torch.cat([past_keys, keys[:, :, new]], 2), torch.cat([past_values, values[:, :, new]], 2))
        expected = attention(case, query[:, :, new], *seen, near, sinks)
        least = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(got[0, row].float(), expected[0, :, 0], rtol=least, atol=least)
    assert torch.equal(got[0, len(LENGTHS) :], torch.zeros_like(got[0, len(LENGTHS) :]))


GPUS = ("75-fp16-128", "80-bf16-64", "86-fp32-256", "90-bf16-256", "120-bf16-80")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What one process says of all GPUs, for all processes of the tests: case, kernel and bytes of shared memory."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    file, script = shared / "compiled_for_gpus.txt", Path(__file__).with_name("compile_for.py")
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(base / "triton")}
            done = subprocess.run(
                [sys.executable, str(script), *GPUS], capture_output=True, text=True, env=environment, timeout=250
            )
            assert done.returncode == 0, done.stderr[-2000:]
            file.write_text(done.stdout)
    return [line.split() for line in file.read_text().splitlines()]


@pytest.mark.parametrize("case", GPUS)
def test_gpus_from_turing_on_can_run_them(case: str, compiled: list[list[str]]) -> None:
    """Compiled to machine code, which needs no GPU, and within the shared memory that the smallest of them have."""
    names, shared = zip(*(line[1:] for line in compiled if line[0] == case), strict=True)
    assert names == ("_append", "_attend", "_merge", "_attend", "_merge")
    assert max(map(int, shared)) <= (64 if case.startswith("75") else 99) * 1024
