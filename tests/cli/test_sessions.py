"""cachegraph run --session, and cachegraph sessions, on a model that takes no time."""

import json
from pathlib import Path
from typing import Any

import pytest

CHAT = """\
version: 1
name: chat
models: {small: ./llama}
inputs: {question: {}}
agents:
  talker: {model: small, prompt: "{{ question }}", memory: {turns: 4}, generate: {max_new_tokens: 4, ignore_eos: true}}
output: talker
"""


@pytest.fixture
def chat(recipes: Path) -> Path:
    (recipes / "chat.yaml").write_text(CHAT)
    return recipes / "chat.yaml"


def test_a_conversation_goes_on_is_shown_and_removed(call: Any, chat: Path) -> None:
    assert call("sessions", "list").out.startswith("no sessions yet")
    for question in ("what is the sky?", "and the sea?"):
        ended = call("run", chat, "-i", f"question={question}", "--session", "alice", "--json")
        assert ended.code == 0, ended.err
    memory = json.loads(ended.out)["agents"]["talker"]["memory"]
    assert memory["turns"] == 1
    assert memory["reused"] > 0
    (row,) = json.loads(call("sessions", "list", "--json").out)
    assert (row["session"], row["graph"], row["turns"]) == ("alice", "chat", 2)
    assert row["cache_bytes"] > 0
    assert "alice" in call("sessions", "list").out
    shown = call("sessions", "show", "alice").out
    assert "user: what is the sky?" in shown
    assert "user: and the sea?" in shown
    assert "alice" in call("sessions", "rm", "alice").out
    assert json.loads(call("sessions", "list", "--json").out) == []


def test_a_session_that_is_not_there_is_an_error(call: Any) -> None:
    for command in ("show", "rm"):
        ended = call("sessions", command, "bob")
        assert (ended.code, "there is no session 'bob'" in ended.err) == (2, True)


def test_a_session_takes_one_channel(call: Any, chat: Path) -> None:
    ended = call("run", chat, "-i", "question=?", "--session", "a", "-c", "text", "-c", "cache")
    assert ended.code == 2
    assert "--session continues one conversation" in ended.err


def test_a_wrong_memory_is_named_with_its_line(call: Any, chat: Path) -> None:
    for wrong, problem in (
        ("{turn: 4}", "6:61: unknown key 'turn'; did you mean 'turns'?"),
        ("{turns: 0}", "'turns' must be a whole number above 0, got 0"),
        ("maybe", "'memory' must be true or false or a mapping, got 'maybe'"),
    ):
        chat.write_text(CHAT.replace("{turns: 4}", wrong))
        ended = call("validate", chat)
        assert problem in ended.err + ended.out, wrong
        assert ended.code == 2
