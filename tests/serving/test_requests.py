"""What is wrong with a request, how much a server takes on, and clients that go away."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import Running, chat, served, wait_until
from server_graphs import Gate, gated, scripted_duo, tiny_solo

from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.errors import InputError, ModelError
from cachegraph.graph.graph import Graph
from cachegraph.serving.config import ServerLimits
from cachegraph.serving.hide_paths import hide_paths

URL = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"model": NaN}', 400),
        (b"[" * 100_000, 400),
        (b'{"model": 1, "messages": []}', 400),
        (b'{"model": "duo"}', 400),
        (b'{"model": "duo", "messages": [{"role": "user", "content": 1}]}', 400),
        (b'{"model": "duo", "messages": [{"role": "robot", "content": "x"}]}', 400),
        (b'{"model": "duo", "messages": [{"role": "assistant", "content": "x"}]}', 400),
        (b'{"model": "duo", "messages": [{"role": "user", "content": "x"}], "n": 1e400}', 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_body_that_is_wrong_is_an_error_in_words(scripted_server: Running, body: bytes, status: int) -> None:
    answer = scripted_server.post(URL, None, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_half_a_surrogate_does_no_harm(scripted_server: Running) -> None:
    body = b'{"model": "duo", "messages": [{"role": "user", "content": "a\\ud83db"}], "stream": true}'
    answer = scripted_server.post(URL, None, content=body, headers={"Content-Type": "application/json"})
    assert "a\\ufffdb" in answer.text


def test_bodies_and_prompts_have_limits() -> None:
    with served([scripted_duo()], limits=ServerLimits(body_bytes=2_000, prompt_characters=100)) as server:
        assert server.post(URL, chat("x" * 3_000)).status_code == 413
        answer = server.post(URL, chat("x" * 101))
        assert answer.status_code == 400
        assert "at most 100" in answer.json()["error"]["message"]
        by_name = chat("x", inputs={"question": "x" * 101})
        assert server.post(URL, by_name).status_code == 400
        assert server.post(URL, chat("x" * 90)).status_code == 200


def test_a_run_has_a_time_limit() -> None:
    gate = Gate()
    with served([gated(gate)], limits=ServerLimits(seconds=0.05)) as server:
        answer = server.post(URL, chat())
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        assert gate.cancelled == gate.entered.acquire(blocking=False)  # on a busy machine the time is over before it


def test_a_full_queue_is_429_with_a_time_to_come_again() -> None:
    gate = Gate()
    with served([gated(gate)], limits=ServerLimits(running=1, waiting=1)) as server:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.post(URL, chat()).status_code)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.queue.reserved == 2)
        full = server.post(URL, chat())
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        assert (server.queue.running, server.queue.waiting) == (1, 1)
        gate.open.set()
        for thread in threads:
            thread.join(60)
        assert answers == [200, 200]
        assert server.post(URL, chat()).status_code == 200


@contextmanager
def client(server: Running, **more: Any) -> Iterator[socket.socket]:
    """A client that has sent a request, and leaves when the block ends, whether an answer has come or not."""
    where = urlsplit(server.url)
    body = json.dumps(chat(**more)).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_run(stream: bool) -> None:
    gate = Gate()
    with served([gated(gate)]) as server:
        with client(server, stream=stream):
            assert gate.entered.acquire(timeout=60)
        wait_until(lambda: gate.cancelled == 1)
        wait_until(lambda: server.queue.reserved == 0)


def test_a_client_that_leaves_while_its_run_waits_gives_its_place_back() -> None:
    gate = Gate()
    with served([gated(gate)], limits=ServerLimits(running=1, waiting=5)) as server:
        thread = threading.Thread(target=lambda: server.post(URL, chat()))
        thread.start()
        assert gate.entered.acquire(timeout=60)
        with client(server):
            wait_until(lambda: server.queue.reserved == 2)
        wait_until(lambda: server.queue.reserved == 1)
        gate.open.set()
        thread.join(60)


def test_a_client_that_leaves_a_model_at_work_frees_its_memory() -> None:
    solo = tiny_solo(generate={"max_new_tokens": 400, "ignore_eos": True})
    with served([solo]) as server:
        engine = solo._agents_now().agents["a"].peer().engine
        assert engine is not None
        for _ in range(3):
            with client(server, model="solo", stream=True) as connection:
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: server.queue.reserved == 0)
        wait_until(lambda: engine.kv_use().used == engine.kv_use().prefixes)


def test_errors_of_runs_are_told_by_who_is_to_blame(tmp_path: Path) -> None:
    def status(error: Exception) -> tuple[int, str]:
        with served([scripted_duo(ScriptedAgent("expert", fail=error))]) as server:
            answer = server.post(URL, chat())
            return answer.status_code, answer.json()["error"]["message"]

    assert status(InputError("the input is wrong"))[0] == 400
    assert status(ModelError("the prompt is too long"))[0] == 422
    code, message = status(ModelError(f"the file {str(tmp_path / 'x.safetensors')!r} is damaged"))
    assert code == 422
    assert str(tmp_path) not in message
    assert "'x.safetensors' is damaged" in message


def test_what_nobody_expected_is_an_error_without_its_details(monkeypatch: pytest.MonkeyPatch) -> None:
    from cachegraph.serving.openai import models

    with served([scripted_duo()]) as server:
        monkeypatch.setattr(models, "_model", lambda served: 1 / 0)
        answer = server.get("/v1/models")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


def test_a_recipe_that_asks_a_person_says_where_it_can() -> None:
    graph = Graph(name="duo", create=scripted())
    graph.add_agent("asked", pause="What?")
    graph.add_agent("a", model="m", prompt="{{ asked }}")
    graph.add_edge("asked", "a")
    graph.output = "a"
    with served([graph]) as server:
        answer = server.post(URL, chat())
    assert answer.status_code == 400
    assert "waits for a person" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'/home/me/x.yaml' is gone", "'x.yaml' is gone"),
        ("/home/me/x.yaml:3:1: wrong", "x.yaml:3:1: wrong"),
        ("in /tmp/a b.txt", "in a b.txt"),
        ("at 'C:\\Users\\me\\x.yaml'", "at 'x.yaml'"),
        ("~/keys/x is no key", "x is no key"),
        ("https://host/v1/chat failed", "https://host/v1/chat failed"),
        ("and/or 1/2", "and/or 1/2"),
        ("hub:NAME/MODEL/FOLDER", "hub:NAME/MODEL/FOLDER"),
    ],
)
def test_paths_of_the_server_are_hidden(text: str, shown: str) -> None:
    assert hide_paths(text) == shown
