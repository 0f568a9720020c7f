"""What one tenant's agents have read never reaches another one's: many tenants, on one engine with little memory."""

from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from live_server import Running, chat, served
from server_graphs import tiny_solo

from cachegraph.engine.batching.request_context import RequestContext, request_context
from cachegraph.graph.graph import Graph
from cachegraph.serving.auth import Keys
from cachegraph.serving.config import ServerLimits

TENANTS = 200
WORDS = ["the sky", "a sea", "is blue", "is green", "and", "what", "the answer", "a question", "who", "why not"]


def text_of(seed: object) -> str:
    """Some 300 characters that no other seed has, which fill a block of the prefix cache."""
    digest = sha256(repr(seed).encode()).digest() * 2
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest)[:330]


def solo(**model: Any) -> Graph:
    graph = tiny_solo(generate={"max_new_tokens": 4})
    entry = graph.spec.models["tiny"]
    return graph.with_spec(graph.spec.model_copy(update={"models": {"tiny": entry.model_copy(update=model)}}))  # type: ignore[union-attr]


def expected(texts: list[str]) -> dict[str, str]:
    """What a model says of each text that has never read another one."""
    with solo() as graph, request_context(RequestContext(reuse=False)):
        return {text: graph.run(question=text).text for text in texts}


def keys(names: list[str]) -> Keys:
    return Keys({sha256(f"key of {name}".encode()).digest(): name for name in names})


async def ask_all(server: Running, asked: list[tuple[str, str]]) -> list[tuple[str, int]]:
    """The reply and the cached tokens of each tenant's text, sixteen at a time."""
    answers: list[tuple[str, int]] = [("", -1)] * len(asked)
    places = anyio.CapacityLimiter(16)

    async def one(client: httpx2.AsyncClient, index: int, tenant: str, text: str) -> None:
        async with places:
            headers = {"Authorization": f"Bearer key of {tenant}"}
            answer = await client.post("/v1/chat/completions", json=chat(text, "solo"), headers=headers)
            body = answer.json()
            cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
            answers[index] = body["choices"][0]["message"]["content"], cached

    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client, anyio.create_task_group() as group:
        for index, (tenant, text) in enumerate(asked):
            group.start_soon(one, client, index, tenant, text)
    return answers


@pytest.mark.timeout(600)
def test_no_tenant_gets_or_is_billed_for_what_another_one_has_read() -> None:
    names = [f"tenant-{number}" for number in range(TENANTS)]
    shared = text_of("shared")
    own = {name: text_of(name) for name in names}
    said = expected([shared, *own.values()])
    assert len(set(said.values())) > TENANTS // 2  # so a mix-up would show
    # Each reads a text of its own, then the one that all of them read, then its own again.
    graph = solo(kv_memory=4_000_000)
    with served([graph], keys=keys(names), limits=ServerLimits(waiting=2 * TENANTS)) as server:
        first = [(name, own[name]) for name in names]
        common = [(name, shared) for name in names]
        for asked in (first, common):
            answers = anyio.run(partial(ask_all, server, asked))
            assert [reply for reply, _ in answers] == [said[text] for _, text in asked]
            assert {cached for _, cached in answers} == {0}
        again = [pair for name in names[-8:] for pair in [(name, shared), (names[0], own[name])]]
        answers = anyio.run(partial(ask_all, server, again))
        assert [reply for reply, _ in answers] == [said[text] for _, text in again]
        engine = graph._agents_now().agents["a"].peer().engine
        assert engine is not None
        use = engine.kv_use()
        assert use.peak <= use.budget
        mine, others = answers[0::2], answers[1::2]
        assert any(cached > 0 for _, cached in mine)  # reuse is on
        assert {cached for _, cached in others} == {0}  # and is nobody else's
        assert engine._loop is not None
        kept = len(engine._loop.prefixes)
        assert 0 < kept < 2 * TENANTS  # blocks were given up on the way


def test_sessions_of_the_same_name_are_each_tenants_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    graph = tiny_solo(memory=True, generate={"max_new_tokens": 4})
    with served([graph], keys=keys(["alice", "bob"])) as server:

        def tokens(tenant: str) -> int:
            headers = {"Authorization": f"Bearer key of {tenant}"}
            answer = server.post("/v1/chat/completions", chat("hi", "solo", session="talk"), headers=headers)
            return int(answer.json()["usage"]["prompt_tokens"])

        alone = tokens("alice")
        assert tokens("alice") > alone  # it remembers
        assert tokens("bob") == alone
    assert "talk" not in {path.name for path in (tmp_path / "sessions").iterdir()}
