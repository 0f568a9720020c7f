"""Runs that asyncio cancels while a thread still prepares them: `asyncio.wait_for` and `Task.cancel`."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from cachegraph import Graph, InputError
from cachegraph.agents.scripted import scripted
from cachegraph.agents.sessions import session as sessions
from cachegraph.agents.sessions import session_files
from cachegraph.graph.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


class Gate:
    """Holds up a function that a thread calls, the first time."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._calls = 0
        self.reached, self.opens = threading.Event(), threading.Event()

    def __call__(self, *parts: Any, **options: Any) -> Any:
        self._calls += 1
        if self._calls == 1:
            self.reached.set()
            self.opens.wait(60)
        return self._function(*parts, **options)

    async def cancel_behind(self, work: Coroutine[Any, Any, Any]) -> None:
        """Cancel the work once the function is called, and then let the function return."""
        task = asyncio.create_task(work)
        with anyio.fail_after(60):
            while not self.reached.is_set():  # noqa: ASYNC110  (another thread sets it)
                await anyio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        self.kept = caught.value  # as by a caller that logs it: what its frames hold is not freed
        self.opens.set()


def graph(**agent: Any) -> Graph:
    spec = {"model": "m", "prompt": "{{ q }}", **agent}
    return Graph(name="chat", inputs={"q": {}}, agents={"a": spec}, output="a", create=scripted())


async def test_the_session_of_a_cancelled_run_is_free_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    gate = Gate(session_files.read)
    monkeypatch.setattr(sessions, "read", gate)
    made = graph(memory=True)
    await gate.cancel_behind(made.arun(q="Hello?", session="alice"))
    with anyio.fail_after(60):
        while True:
            try:
                assert (await made.arun(q="Again?", session="alice")).status == "finished"
                break
            except InputError as error:  # the thread is about to release it
                assert "in use by another run" in str(error)  # noqa: PT017
                await anyio.sleep(0.005)


async def test_a_run_that_is_cancelled_as_it_enters_the_store_does_not_stay_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "runs.db") as store:
        gate = Gate(store.begin)
        monkeypatch.setattr(store, "begin", gate)
        await gate.cancel_behind(graph().arun(q="Hello?", store=store))
        with anyio.fail_after(60):
            while [run.status for run in store.list()] != ["cancelled"]:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        (run,) = store.list()
        assert store.get(run.id).outcome.error == "the run was cancelled"
        assert (await graph().aresume(run.id, store=store)).text == "a(Hello?)"


async def test_a_stream_whose_loop_ends_before_its_first_step_does_not_keep_the_loop() -> None:
    async def read() -> None:
        async for _ in graph().stream(q="Hello?"):
            raise AssertionError

    before = asyncio.all_tasks()
    reader = asyncio.create_task(read())
    await asyncio.sleep(0)  # the reader has created the task of the run, which has taken no step
    for task in asyncio.all_tasks() - before:
        task.cancel()  # as `asyncio.run` does at its end
    done, _ = await asyncio.wait([reader], timeout=60)
    assert [task.cancelled() for task in done] == [True]
