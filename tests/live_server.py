"""A real server in a thread of the tests: uvicorn, a socket, an event loop of its own."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai
from waiting import wait_until

from cachegraph.agents.http_client import ssl_context
from cachegraph.graph.graph import Graph
from cachegraph.serving.config import ServerConfig
from cachegraph.serving.process import ServerProcess, bind

__all__ = ["Running", "chat", "send", "served", "wait_until"]


@dataclass(frozen=True)
class Running:
    """A server that takes requests."""

    url: str
    process: ServerProcess
    opened: ExitStack  # clients, which end with the server

    def openai(self, key: str = "none") -> openai.OpenAI:
        """The official client of the OpenAI API."""
        http = openai.DefaultHttpxClient(verify=ssl_context())
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=http)
        return self.opened.enter_context(client)

    def anthropic(self, key: str = "none") -> anthropic.Anthropic:
        """The official client of the Anthropic API."""
        http = anthropic.DefaultHttpxClient(verify=ssl_context())
        client = anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, http_client=http)
        return self.opened.enter_context(client)

    @property
    def queue(self) -> Any:
        return self.process.app.state.server.queue

    def post(self, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        return send("POST", f"{self.url}{path}", json=body, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return send("GET", f"{self.url}{path}", **more)


def send(method: str, url: str, *, timeout: Any = 60, **more: Any) -> httpx2.Response:
    """Send a request over a connection of its own. The certificates, which take 20 ms to read, are read once."""
    return httpx2.request(method, url, timeout=timeout, verify=ssl_context(), **more)


@contextmanager
def served(graphs: Sequence[Graph], **config: Any) -> Iterator[Running]:
    """Serve these graphs on a free port until the block ends."""
    settings = ServerConfig(**{"grace": 0.0, "port": 0, **config})
    sock = bind(settings)
    process = ServerProcess(graphs, settings)
    thread = threading.Thread(target=process.run, args=(sock,), daemon=True)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread.start()
    try:
        wait_until(lambda: _is_ready(url))
        with ExitStack() as opened:
            yield Running(url, process, opened)
    finally:
        process.stop(at_once=True)
        thread.join(60)
        assert not thread.is_alive()


def chat(text: str = "why?", model: str = "duo", **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def _is_ready(url: str) -> bool:
    try:
        return send("GET", f"{url}/ready", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
