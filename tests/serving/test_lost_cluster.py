"""A server whose cluster is lost says so to clients and to probes, and asks for a new start."""

from typing import Any

import openai
import pytest
from live_server import chat, served
from server_graphs import scripted_duo

from cachegraph.agents.create import Create
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.errors import ConfigError, RunError
from cachegraph.serving.errors import api_error

WHY = "the connection to the cluster is lost: nothing has answered at 10.0.0.1:6379 for 30 s"


class Host:
    """A cluster that is lost in the middle of a run's turn."""

    why_lost: str | None = None

    def creator(self, **_: Any) -> Create:
        return scripted(ScriptedAgent("expert", self._lose))

    def _lose(self, _: Any) -> str:
        self.why_lost = WHY
        raise ConfigError(f"{WHY}; when the cluster is back, connect again")


def test_a_server_whose_cluster_is_lost_says_so_to_clients_and_probes() -> None:
    graph = scripted_duo().on_cluster(Host())
    with served([graph]) as running:
        client = running.openai()
        assert [running.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        ask: dict[str, Any] = {"model": "duo@text", "messages": [{"role": "user", "content": "why?"}]}
        with pytest.raises(openai.InternalServerError) as during:
            client.chat.completions.create(**ask)
        assert (during.value.status_code, during.value.code) == (503, "not_configured")
        with pytest.raises(openai.InternalServerError) as later:
            client.chat.completions.create(**ask)
        assert (later.value.status_code, later.value.code) == (503, "cluster_lost")
        assert later.value.body == {
            "message": f"{WHY}; start the server again when the cluster is back",
            "type": "server_error",
            "param": None,
            "code": "cluster_lost",
        }
        assert later.value.response.headers["x-should-retry"] == "false"
        stream = running.post("/v1/chat/completions", chat(stream=True))
        assert (stream.status_code, stream.json()["error"]["code"]) == (503, "cluster_lost")
        message = running.post("/v1/messages", chat(max_tokens=9))
        assert (message.status_code, WHY in message.json()["error"]["message"]) == (503, True)
        assert running.post("/runs", {"graph": "duo", "inputs": {"question": "why?"}}).status_code == 503
        probes = [running.get(path) for path in ("/health", "/ready")]
        assert [(probe.status_code, probe.json()["status"]) for probe in probes] == [(503, "cluster lost")] * 2
        assert running.get("/v1/models").status_code == 200


def test_what_an_included_recipe_lacks_is_an_error_of_the_server() -> None:
    inner = RunError("agent 'a' failed: no key")
    inner.__cause__ = ConfigError("no key")
    outer = RunError("agent 'team' failed: agent 'a' failed: no key")
    outer.__cause__ = inner
    assert (api_error(outer).status, api_error(outer).code) == (503, "not_configured")
