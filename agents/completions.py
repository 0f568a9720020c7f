"""The OpenAI-compatible chat API: one streamed completion, retried while nothing of it has been heard.

Every error is a ModelError in our words that names the agent and the place. The key is in none of them, in no repr,
and goes to no other host: redirects are not followed.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import count
from random import random
from ssl import SSLContext
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import anyio

from cachegraph.errors import ModelError

from .spec import RetrySpec, Trouble
from .sse import EventDecoder, EventTooLong

if TYPE_CHECKING:
    import httpx2

__all__ = ["Completion", "CompletionsAPI"]

TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is out of order for this run
SILENCE = 300.0  # seconds between two pieces of a reply
MAX_BODY = 1 << 24  # bytes of an answer that does not stream
REMEDIES = {
    401: "check the key in the variable that api_key_env names",
    403: "check the key in the variable that api_key_env names",
    404: "check base_url (it ends with /v1 at most servers) and the model's name",
}


@dataclass
class Completion:
    """A reply as it was heard so far."""

    text: str = ""
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_piece: float | None = None  # perf_counter() when it came
    calls: dict[int, dict[str, str]] = field(default_factory=dict)  # of tools, by their number: id, name, arguments

    def hear_calls(self, pieces: list[dict[str, Any]]) -> None:
        """Take in pieces of calls: a call's first one names it, the others go on with the JSON of its arguments."""
        for number, piece in enumerate(pieces):
            call = self.calls.setdefault(int(piece.get("index", number)), {"id": "", "name": "", "arguments": ""})
            function = piece.get("function") or {}
            call["id"] = piece.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""


class _Transient(Exception):
    """Something that may go better next time; `wait` is what the server asked for, in seconds."""

    def __init__(self, message: str, kind: Trouble, wait: float | None = None):
        self.kind = kind
        self.wait = wait
        super().__init__(message)


@dataclass(frozen=True)
class CompletionsAPI:
    """Where an agent's model answers, and how patient the agent is."""

    agent: str
    base_url: str
    key: str | None = field(repr=False)
    retry: RetrySpec = field(default_factory=RetrySpec)

    async def complete(self, body: dict[str, Any], on_text: Callable[[str], None] | None = None) -> Completion:
        """Ask for one reply and hear it to its end; `on_text` gets each piece as it comes. Raises ModelError."""
        for attempt in count(1):
            try:
                return await self._attempt(body, on_text)
            except _Transient as trouble:
                hopeless = trouble.kind not in self.retry.retry_on or (trouble.wait or 0) > LONGEST_WAIT
                if hopeless or attempt >= self.retry.max_attempts:
                    tries = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise ModelError(f"{trouble}{tries}") from trouble.__cause__
                backoff = self.retry.backoff * 2 ** (attempt - 1) * (0.5 + random())  # noqa: S311
                wait = backoff if trouble.wait is None else trouble.wait
            await anyio.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("unreachable")

    async def _attempt(self, body: dict[str, Any], on_text: Callable[[str], None] | None) -> Completion:
        import httpx2

        heard = Completion()
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        timeout = httpx2.Timeout(SILENCE, connect=10.0)
        # A client a turn: its connections belong to the event loop of this run, and the agent outlives that.
        try:
            async with (
                httpx2.AsyncClient(verify=_ssl_context(), timeout=timeout) as client,
                client.stream(
                    "POST", f"{self.base_url.rstrip('/')}/chat/completions", json=body, headers=headers
                ) as got,
            ):
                await self._check(got)
                if got.headers.get("content-type", "").startswith("application/json"):
                    self._hear(await _read(got, MAX_BODY), "message", heard, on_text)
                else:
                    await self._listen(got, heard, on_text)
        except EventTooLong:
            raise self._error("sent an event that does not end") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._network_error(error, heard) from error
        return heard

    async def _listen(
        self, response: "httpx2.Response", heard: Completion, on_text: Callable[[str], None] | None
    ) -> None:
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise self._error(f"answered with {self._excerpt(kind)!r} where a stream of events was expected")
        decoder = EventDecoder()
        async with _chunks(response) as chunks:
            async for chunk in chunks:
                if self._take(decoder.feed(chunk), heard, on_text):
                    return
        if not self._take(decoder.close(), heard, on_text) and heard.finish is None:
            raise self._error("ended its reply in the middle; ask for fewer tokens, or look at the server's log")

    def _take(self, events: list[str], heard: Completion, on_text: Callable[[str], None] | None) -> bool:
        """Take in some events; says whether the stream is over."""
        for data in events:
            if data.strip() == "[DONE]":
                return True
            self._hear(data, "delta", heard, on_text)
        return False

    def _hear(self, data: str, part: str, heard: Completion, on_text: Callable[[str], None] | None) -> None:
        """Take in one JSON object of the stream, or a whole answer."""
        try:
            said = json.loads(data)
            choice = (said.get("choices") or [{}])[0]
            text = (choice.get(part) or {}).get("content") or ""
            heard.hear_calls((choice.get(part) or {}).get("tool_calls") or [])
            usage = said.get("usage") or {}
            error = said.get("error")
            heard.finish = choice.get("finish_reason") or heard.finish
            heard.prompt_tokens = int(usage.get("prompt_tokens", heard.prompt_tokens) or 0)
            heard.completion_tokens = int(usage.get("completion_tokens", heard.completion_tokens) or 0)
            heard.text += text
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as problem:
            raise self._error(f"sent something that is no chat completion: {self._excerpt(data)}") from problem
        if error:
            raise self._error(f"reported an error: {self._excerpt(data)}")
        if text:
            heard.first_piece = heard.first_piece or perf_counter()
            if on_text is not None:
                on_text(text)

    async def _check(self, response: "httpx2.Response") -> None:
        status = response.status_code
        if status == 200:
            return
        if response.is_redirect:
            raise self._error(
                f"answered with a redirect ({status}), which is not followed; put its target into base_url"
            )
        detail = self._excerpt(await _read(response, 4096))
        message = f"answered {status}" + (f": {detail}" if detail else "")
        if status in TRANSIENT:
            kind: Trouble = "rate_limit" if status == 429 else "server"
            raise _Transient(str(self._error(message)), kind, _retry_after(response.headers.get("retry-after")))
        remedy = f"; {REMEDIES[status]}" if status in REMEDIES else ""
        raise self._error(message + remedy)

    def _network_error(self, error: Exception, heard: Completion) -> Exception:
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return _Transient(
                str(self._error("can't be reached; check base_url and that the server runs")), "connection"
            )
        if isinstance(error, httpx2.TransportError) and not (heard.text or heard.calls):
            what = f"broke off before it answered ({type(error).__name__})"
            return _Transient(str(self._error(what)), "connection")
        return self._error(
            f"broke off in the middle of its answer ({type(error).__name__}: {self._excerpt(str(error))})"
        )

    def _error(self, what: str) -> ModelError:
        return ModelError(f"the endpoint of agent {self.agent!r} at {_public(self.base_url)} {what}")

    def _excerpt(self, body: str) -> str:
        """The start of what a server said, its own error message if it has one, and never the key."""
        try:
            said = json.loads(body)
            error = said.get("error", said)
            body = str(error.get("message", body) if isinstance(error, dict) else error)
        except (ValueError, AttributeError, RecursionError):
            pass
        if self.key:
            body = body.replace(self.key, "***")
        words = " ".join("".join(char if char.isprintable() else " " for char in body).split())
        return words if len(words) <= 300 else words[:300] + "..."


@cache
def _ssl_context() -> SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


@asynccontextmanager
async def _chunks(response: "httpx2.Response") -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of an answer that may be left unread: the client's nested generators are unwound, not abandoned."""
    import httpx2

    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        await response.aclose()
        with suppress(httpx2.HTTPError, httpx2.StreamError, anyio.ClosedResourceError):
            async for _ in chunks:
                pass


async def _read(response: "httpx2.Response", most: int) -> str:
    parts: list[bytes] = []
    size = 0
    async with _chunks(response) as chunks:
        async for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                break
    return b"".join(parts)[:most].decode("utf-8", "replace")


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time(), 0.0)
    except (ValueError, TypeError):
        return None


def _public(url: str) -> str:
    """The URL without what may be secret in it: a user's name and password, a query."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
