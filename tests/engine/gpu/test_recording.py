"""What becomes of a recorded step, with stand-ins for CUDA's streams and graphs: only a GPU can record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from cachegraph.engine.gpu.decoder import GPUDecoder
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model.load import LoadedModel

Stepped = Callable[..., LoadedModel]


class Stream:
    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, _: "Stream") -> None:
        pass


class Graph:
    replayed = 0

    def replay(self) -> None:
        Graph.replayed += 1


@pytest.fixture
def recorder(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> GPUDecoder:
    """A decoder that thinks that it is on a GPU."""

    @contextmanager
    def graph(_: Graph, *, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        yield

    for name, stand_in in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "graph": graph,
        "graph_pool_handle": lambda: "pool",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(Graph, "replayed", 0)
    decoder = stepped().decoder
    assert isinstance(decoder, GPUDecoder)
    decoder._device, decoder.replays = torch.device("cuda"), True
    return decoder


def test_a_step_is_computed_to_warm_up_then_recorded_then_replayed(recorder: GPUDecoder) -> None:
    calls: list[Tensor] = []

    def compute(self: GPUDecoder, size: int) -> Tensor:
        calls.append(torch.arange(1.0, 1.0 + size)[None])
        return calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPUDecoder, "_compute", compute)
        step = recorder._step(4)
        assert len(calls) == 3
        assert step() is step() is calls[-1]  # what was recorded writes to one place
    assert len(calls) == 3
    assert Graph.replayed == 3


@pytest.mark.parametrize("what", ["fails", "computes something else"])
def test_a_step_that_can_not_be_recorded_is_computed_each_time(
    what: str, recorder: GPUDecoder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def compute(self: GPUDecoder, size: int) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3 and what == "fails":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return torch.tensor([[1.0, -1.0 if calls == 3 else 2.0]])

    monkeypatch.setattr(GPUDecoder, "_compute", compute)
    step = recorder._step(1)
    reason = "operation not permitted when stream is capturing" if what == "fails" else "computes something else"
    assert reason in caplog.text
    assert "llama decodes without CUDA graphs" in caplog.text
    assert step().tolist() == [[1.0, 2.0]]
    assert calls == 4
    assert not recorder.replays


def test_warming_up_records_every_size_so_that_no_reply_waits_for_it(
    recorder: GPUDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []

    def record(self: GPUDecoder, size: int) -> Callable[[], Tensor]:
        recorded.append(size)
        return lambda: torch.zeros(size, 8)

    monkeypatch.setattr(GPUDecoder, "_step", record)
    monkeypatch.setattr(recorder, "_device", torch.device("cpu"))  # there the tables are
    recorder.warm_up()
    assert recorded == [1, 2, 4, 8, 16, 32, 64]
    for rows in (1, 3, 50, 64):
        recorder.read([[2]] * rows, [RowCache() for _ in range(rows)], [[0]] * rows)
    assert len(recorded) == 7


def test_memory_that_ends_while_warming_up_leaves_the_rest_for_later(
    recorder: GPUDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(self: GPUDecoder, size: int) -> Callable[[], Tensor]:
        if size > 4:
            raise torch.OutOfMemoryError
        return lambda: torch.zeros(size, 8)

    monkeypatch.setattr(GPUDecoder, "_step", record)
    monkeypatch.setattr(recorder, "_device", torch.device("cpu"))
    recorder.warm_up()
    assert sorted(recorder._steps) == [1, 2, 4]


def test_memory_that_ends_while_recording_is_not_taken_for_a_model_that_can_not_be_recorded(
    recorder: GPUDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(self: GPUDecoder, size: int) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(GPUDecoder, "_compute", compute)
    with pytest.raises(torch.OutOfMemoryError):
        recorder._step(1)
    assert recorder.replays
