"""Sessions: what agents remember from run to run, and that a kept cache changes nothing but the work."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from cachegraph import Graph, InputError, RunError
from cachegraph.agents.base import Turn
from cachegraph.agents.local.agent import LocalAgent
from cachegraph.agents.sessions.session import Recollection, Session
from cachegraph.agents.sessions.session_files import AgentRecord, Exchange, KeptCache, read, sweep
from cachegraph.agents.sessions.spec import MemorySpec
from cachegraph.agents.spec import AgentSpec
from cachegraph.engine.batching.prefix_cache import PrefixCache
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.run.result import Result
from cachegraph.graph.store import Store

QUESTIONS = ["what is the sky?", "and the sea?", "what is the question of the answer?", "so?"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "sessions"


Chat = Callable[..., Graph]


@pytest.fixture
def chat(loaded: dict[str, ModelSpec]) -> Chat:
    """A graph of one agent that remembers."""

    def make(model: str = "small", name: str = "chat", **options: Any) -> Graph:
        graph = Graph(name=name, models={"m": loaded[model]})
        graph.add_input("q")
        parts = {"prompt": "{{ q }}", "generate": {"max_new_tokens": 8}, "memory": True, **options}
        graph.add_agent("talker", model="m", **parts)
        graph.output = "talker"
        return graph

    return make


def talk(graph: Graph, questions: list[str], session: str | None = "alice") -> list[Result]:
    with graph:
        return [graph.run(q=question, session=session) for question in questions]


def cache_file(home: Path, session: str = "alice") -> Path:
    (file,) = (home / session).glob("*.safetensors")
    return file


@pytest.mark.parametrize("model", ["small", "other", "plain"])
def test_a_kept_cache_gives_the_replies_that_prefilling_everything_gives(
    chat: Chat, home: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, in float32; `other` has a sliding window and a template that trims."""
    monkeypatch.setattr(
        PrefixCache, "find", lambda *_: ()
    )  # what the engine itself keeps would hide what a session does
    with_cache = talk(chat(model), QUESTIONS)
    without = []
    for question in QUESTIONS:
        without += talk(chat(model), [question], session="bob")
        for file in (home / "bob").glob("*.safetensors"):
            file.unlink()
    assert [result.text for result in with_cache] == [result.text for result in without]
    ours, theirs = with_cache[-1].agents["talker"], without[-1].agents["talker"]
    assert ours.memory is not None
    assert ours.memory.turns == 3
    assert ours.memory.reused == ours.tokens.reused > 20
    assert ours.tokens.prefilled + ours.tokens.reused == theirs.tokens.prefilled
    assert theirs.memory is not None
    assert theirs.memory.refused == "the stored cache was deleted: it was old, or others needed the room"


def test_another_process_goes_on_from_the_disk(chat: Chat) -> None:
    talk(chat(), QUESTIONS[:2])
    (result,) = talk(chat(), QUESTIONS[2:3])
    report = result.agents["talker"].memory
    assert report is not None
    assert (report.turns, report.refused) == (2, None)
    assert report.reused > 0
    record = read("alice")
    assert record is not None
    assert [e.messages for e in record.agents["talker"].exchanges] == [[("user", q)] for q in QUESTIONS[:3]]


def test_what_was_said_stands_in_front_of_the_prompt_behind_the_system_message(chat: Chat, monkeypatch: Any) -> None:
    from cachegraph.agents.local import render_prompt
    from cachegraph.agents.prompt import prompt

    texts: list[str] = []
    tokenize = prompt.tokenize

    def noted(messages: Any, *rest: Any) -> Any:
        texts.append(" | ".join(f"{message.role}: {message.content.text}" for message in messages))
        return tokenize(messages, *rest)

    monkeypatch.setattr(render_prompt, "tokenize", noted)
    first, _ = talk(chat(system="Be brief."), QUESTIONS[:2])
    assert texts[0] == "system: Be brief. | user: what is the sky?"
    assert texts[1] == f"system: Be brief. | user: what is the sky? | assistant: {first.text} | user: and the sea?"


def test_without_a_session_or_without_memory_nothing_is_kept(chat: Chat, home: Path) -> None:
    (result,) = talk(chat(), QUESTIONS[:1], session=None)
    assert result.agents["talker"].memory is None
    assert not home.exists()
    with pytest.raises(InputError, match="no agent of 'chat' remembers a session"):
        talk(chat(memory=False), QUESTIONS[:1])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "has been changed since it was saved"),
        (lambda file: file.write_bytes(b""), "has been changed since it was saved"),
        (lambda file: file.unlink(), "was deleted"),
    ],
)
def test_a_cache_that_was_touched_is_refused_and_made_again(chat: Chat, home: Path, spoil: Any, why: str) -> None:
    clean = [result.text for result in talk(chat(), QUESTIONS[:2], session="bob")]
    talk(chat(), QUESTIONS[:1])
    spoil(cache_file(home))
    (result,) = talk(chat(), QUESTIONS[1:2])
    report = result.agents["talker"].memory
    assert report is not None
    assert why in (report.refused or "")
    assert report.reused == 0
    assert result.text == clean[1]
    (after,) = talk(chat(), QUESTIONS[2:3])
    assert after.agents["talker"].memory.refused is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "why"), [({"model": "third"}, "is of model"), ({"dtype": "bfloat16"}, "is of dtype 'float32'")]
)
def test_a_cache_of_another_model_or_dtype_is_refused(
    chat: Chat, loaded: dict[str, ModelSpec], change: dict[str, str], why: str
) -> None:
    talk(chat(), QUESTIONS[:1])
    graph = chat()
    changed = loaded[change.get("model", "small")].model_copy(update={"dtype": change.get("dtype", "float32")})
    graph = graph.with_spec(graph.spec.model_copy(update={"models": {"m": changed}}))
    (result,) = talk(graph, QUESTIONS[1:2])
    report = result.agents["talker"].memory
    assert report is not None
    assert why in (report.refused or "")


def test_a_run_that_fails_leaves_the_session_as_it_was(chat: Chat) -> None:
    talk(chat(), QUESTIONS[:1])
    graph = chat()

    @graph.function
    def fail(talker: str) -> str:
        raise ValueError("no")

    graph.add_edge("talker", "fail")
    graph.output = "fail"
    with pytest.raises(RunError):
        talk(graph, QUESTIONS[1:2])
    record = read("alice")
    assert record is not None
    assert len(record.agents["talker"].exchanges) == 1
    (result,) = talk(chat(), QUESTIONS[1:2])
    assert result.agents["talker"].tokens.reused > 0


def interrupted(chat: Chat, question: str, on_error: str = "stop") -> tuple[Graph, str]:
    """A run that its second agent has failed, once, after the talker had spoken; and its graph."""
    graph, failures = chat(), [ValueError("no")]
    graph = graph.with_spec(graph.spec.model_copy(update={"on_error": on_error}))

    @graph.function
    def check(talker: str) -> str:
        if failures:
            raise failures.pop()
        return talker

    graph.add_edge("talker", "check")
    graph.output = "check" if on_error == "stop" else ["talker", "check"]
    with graph:
        try:
            result = graph.run(q=question, session="alice", store=Store())
        except RunError as error:
            result = error.result
    assert result.run_id is not None
    return graph, result.run_id


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_resumed_run_has_its_session_remember_recalled_turns_once(chat: Chat, on_error: str) -> None:
    whole = [result.text for result in talk(chat(), QUESTIONS[:3], session="bob")]
    talk(chat(), QUESTIONS[:1])
    graph, run = interrupted(chat, QUESTIONS[1], on_error)
    with graph:
        graph.resume(run, store=Store())
    record = read("alice")
    assert record is not None
    exchanges = record.agents["talker"].exchanges
    assert [each.reply for each in exchanges] == whole[:2]
    assert [each.turn for each in exchanges] == [None, f"{run}/talker"]
    assert [result.text for result in talk(chat(), QUESTIONS[2:3])] == whole[2:]


def test_a_recalled_turn_is_read_again_with_what_the_session_held_before_it() -> None:
    record = AgentRecord(exchanges=[Exchange(messages=[("user", "0")], reply="a")])
    memory = Recollection(Path(), record, MemorySpec())
    assert memory.before("run/x").told == 1
    memory.add([("user", "1")], "b")
    memory.sign("run/x")
    memory.add([("user", "2")], "c")
    assert [text for role, text in memory.before("run/x").history(None, len) if role == "user"] == ["0"]
    assert memory.told == 3


def test_a_turn_taken_elsewhere_from_a_snapshot_is_remembered_with_what_was_left_out_there() -> None:
    record = AgentRecord(exchanges=[Exchange(messages=[("user", str(n))], reply="a") for n in range(6)], left_out=1)
    record.cache = KeptCache(file="here", sha256="")
    memory = Recollection(Path(), record, MemorySpec(turns=4))
    there = memory.snapshot()
    assert there.record.cache is None
    assert [text for role, text in there.history(None, len) if role == "user"] == ["4", "5"]
    there.add([("user", "6")], "b", save=lambda _: None)
    assert (memory.told, memory.snapshot().told) == (5, 5)
    memory.add_told(2, [("user", "6")], "b")
    assert (record.left_out, memory.told, record.exchanges[-1].reply) == (4, 3, "b")
    assert [text for role, text in memory.history(None, len) if role == "user"] == ["4", "5", "6"]


def test_a_turn_without_a_cache_of_its_own_leaves_the_earlier_one_which_begins_the_next_prompt(
    chat: Chat, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(chat(), QUESTIONS[:1])
    kept = cache_file(home).read_bytes()

    async def elsewhere() -> None:
        async with Session("alice", "chat") as session:
            session.of("talker", True).add_told(1, [("user", QUESTIONS[1])], "yes")

    anyio.run(elsewhere)
    assert cache_file(home).read_bytes() == kept
    monkeypatch.setattr(PrefixCache, "find", lambda *_: ())
    (result,) = talk(chat(), QUESTIONS[2:3])
    assert result.agents["talker"].memory is not None
    assert (result.agents["talker"].memory.turns, result.agents["talker"].memory.refused) == (2, None)
    assert result.agents["talker"].memory.reused > 0


def test_two_runs_at_once_can_not_have_one_session(chat: Chat) -> None:
    async def hold() -> None:
        async with Session("alice", "chat"):
            with pytest.raises(InputError, match="the session 'alice' is in use by another run"):
                await chat().arun(q="?", session="alice")

    anyio.run(hold)
    talk(chat(), QUESTIONS[:1])


def test_a_session_belongs_to_one_graph(chat: Chat) -> None:
    talk(chat(), QUESTIONS[:1])
    with pytest.raises(InputError, match="the session 'alice' is one of the graph 'chat', not of 'other'"):
        talk(chat(name="other"), QUESTIONS[:1])
    talk(chat(), QUESTIONS[1:2])  # and it was let go


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a" * 101])
def test_a_name_that_is_no_folder_is_refused(chat: Chat, name: str) -> None:
    with pytest.raises(InputError, match="can't name a session"):
        talk(chat(), QUESTIONS[:1], session=name)


def test_a_damaged_session_says_so(chat: Chat, home: Path) -> None:
    talk(chat(), QUESTIONS[:1])
    text = home / "alice" / "session.json"
    newer = json.loads(text.read_text()) | {"format": 2}
    for content in ("{", json.dumps(newer)):
        text.write_text(content)
        with pytest.raises(InputError, match=r"the session 'alice' can't be read: it is damaged.*sessions rm alice"):
            talk(chat(), QUESTIONS[:1])


def test_beyond_a_limit_the_older_half_is_left_out_for_good() -> None:
    record = AgentRecord(exchanges=[Exchange(messages=[("user", str(n))], reply="1234") for n in range(9)])
    memory = Recollection(Path(), record, MemorySpec(turns=8))
    assert [text for role, text in memory.history(None, len) if role == "user"] == ["5", "6", "7", "8"]
    assert record.left_out == 5
    record.exchanges.append(Exchange(messages=[("user", "9")], reply="1234"))
    assert [text for role, text in memory.history(None, len) if role == "user"] == ["5", "6", "7", "8", "9"]
    assert len(memory.history(20, len)) == 4  # 25 characters: two of them come to 10
    assert Recollection(Path(), record, MemorySpec(tokens=1)).history(None, len) == []


def test_old_caches_and_those_beyond_the_room_are_dropped_and_text_stays(
    chat: Chat, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(chat(), QUESTIONS[:1])
    file = cache_file(home)
    sweep()
    assert file.exists()
    os.utime(file, (time.time() - 31 * 86_400,) * 2)
    sweep()
    assert not file.exists()
    talk(chat(), QUESTIONS[1:2])
    monkeypatch.setenv("CACHEGRAPH_SESSIONS_GB", "0.00001")
    sweep()
    assert not list((home / "alice").glob("*.safetensors"))
    assert read("alice") is not None


def test_a_cache_edge_hands_over_what_was_said_before(loaded: dict[str, ModelSpec], tmp_path: Path) -> None:
    spec = AgentSpec.model_validate(
        {"model": "small", "prompt": "{{ q }}", "generate": {"max_new_tokens": 4}, "memory": True}
    )
    agent = LocalAgent("talker", spec, loaded["small"], tmp_path, inputs=["q"], upstream=[])

    async def turn(question: str) -> Any:
        async with Session("alice", "chat") as session:
            memory = session.of("talker", spec.memory)
            return await agent.turn(Turn({"q": question}, needs_cache=True, memory=memory))

    async def both() -> Any:
        await agent.open()
        try:
            await turn(QUESTIONS[0])
            return await turn(QUESTIONS[1])
        finally:
            await agent.close()

    reply = anyio.run(both)
    plane = reply.payload.cache
    assert {origin[0] for origin in plane.origins if origin} == {"session:", "q", "talker"}
    assert sum(map(len, plane.segments)) == len(plane.ids)


@pytest.mark.models
@pytest.mark.timeout(600)
def test_a_real_model_says_the_same_with_its_cache_as_without(
    demo_models: object, home: Path, home_of_the_tests: Path
) -> None:
    home.parent.mkdir()
    for name in ("models", "kernels", "tokenizers"):  # else they are fetched, compiled and converted again
        (home.parent / name).symlink_to(home_of_the_tests / name)
    graph = Graph(name="chat", models={"m": ModelSpec(source="smollm2-135m-instruct", dtype="float32")})
    graph.add_input("q")
    graph.add_agent("talker", model="m", prompt="{{ q }}", memory=True, generate={"max_new_tokens": 12})
    graph.output = "talker"
    questions = ["Name a colour.", "And another?"]
    with graph:
        kept = [graph.run(q=question, session="alice") for question in questions]
        graph.run(q=questions[0], session="bob")
        cache_file(home, "bob").unlink()
        alone = graph.run(q=questions[1], session="bob")
    assert kept[1].text == alone.text
    assert kept[1].agents["talker"].tokens.reused > 20
    assert alone.agents["talker"].tokens.reused == 0


def test_an_agent_of_an_included_recipe_remembers_as_it_would_in_the_graph_itself(
    chat: Chat, loaded: dict[str, ModelSpec], tmp_path: Path
) -> None:
    expected = [result.text for result in talk(chat(), QUESTIONS[:3])]
    inner = chat()
    inner.to_yaml(tmp_path / "inner.yaml")
    outer = Graph(name="outer", folder=tmp_path)
    outer.add_input("q")
    outer.add_agent("inside", graph="inner.yaml", inputs={"q": "{{ q }}"})
    outer.output = "inside"
    results = talk(outer, QUESTIONS[:3], session="bob")
    assert [result.text for result in results] == expected
    reports = [result.agents["inside"].inside["talker"].memory for result in results]
    assert [report.turns for report in reports if report is not None] == [0, 1, 2]
    assert reports[2] is not None
    assert reports[2].reused > 0
