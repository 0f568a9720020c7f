"""Client for one streamed completion of an OpenAI-compatible chat API, retried until the first part of it arrives.

Every error is a ModelError that names the agent and the endpoint. Secrets appear in no error and no repr, and are sent
to no other host: redirects are not followed.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio

from cachegraph.common.printable import printable_line
from cachegraph.common.surrogates import mend
from cachegraph.errors import ModelError

from ..http_client import http_client
from ..spec import RetrySpec, Trouble
from .completion import Completion, Reported, Unreadable
from .error_text import page_title, public_address, server_message
from .http import encoding_of, knows_encoding, pieces_of, read_start, retry_after
from .request import Secrets, chat_address
from .response_decoder import AnswerDecoder, NotAnAnswer
from .sse_decoder import EventTooLong, ServerSentEvent
from .tool_calls import ToolCallPieces
from .unsupported_parameters import adapted, refused_parameter

if TYPE_CHECKING:
    import httpx2

__all__ = ["CompletionsAPI"]

OnText = Callable[[str], None] | None

TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT = 60.0  # seconds; a server that asks for more counts as unavailable
SILENCE = 300.0  # seconds between two pieces of a reply
MAX_ERROR = 1 << 16  # bytes read of an error
CUT_REMEDY = "; ask for fewer tokens, or look at the server's log"
REMEDIES = {
    401: "check the key in the variable that api_key_env names",
    403: "check the key in the variable that api_key_env names",
    404: "check base_url (it ends with /v1 at most servers) and the model's name",
}


class _Transient(Exception):
    """A failure that may not recur; `wait` is the delay that the server asked for, in seconds."""

    def __init__(self, message: str, kind: Trouble, wait: float | None = None):
        self.kind = kind
        self.wait = wait
        super().__init__(message)


class _Refused(Exception):
    """The request may succeed without this parameter."""

    def __init__(self, parameter: str, message: str):
        self.parameter = parameter
        super().__init__(message)


@dataclass(frozen=True)
class CompletionsAPI:
    """An agent's endpoint, and its limits for retries."""

    agent: str
    base_url: str
    secrets: Secrets = field(default_factory=Secrets)
    retry: RetrySpec = field(default_factory=RetrySpec)
    allow_local: bool = True  # whether its host may be in this machine's networks, under any name
    refused: list[str] = field(default_factory=list)  # parameters that this model refuses, found as it reports them

    async def complete(self, body: dict[str, Any], on_text: OnText = None) -> Completion:
        """Request and stream one reply; `on_text` receives each piece as it arrives. Raises ModelError."""
        attempt, refused = 1, list(self.refused)
        while True:
            try:
                done = await self._attempt(adapted(body, refused), on_text)
            except _Refused as refusal:
                if refusal.parameter in refused:
                    raise ModelError(str(refusal)) from None
                refused.append(refusal.parameter)
            except _Transient as trouble:
                await anyio.sleep(self._pause(trouble, attempt))
                attempt += 1
            else:
                self.refused[:] = refused
                return done

    def _pause(self, trouble: _Transient, attempt: int) -> float:
        """The seconds until the next attempt. Raises ModelError if there is none."""
        hopeless = trouble.kind not in self.retry.retry_on or (trouble.wait or 0) > LONGEST_WAIT
        if hopeless or attempt >= self.retry.max_attempts:
            tries = f" ({attempt} attempts)" if attempt > 1 else ""
            raise ModelError(f"{trouble}{tries}") from trouble.__cause__
        backoff = self.retry.backoff * 2 ** (attempt - 1) * (0.5 + random())  # noqa: S311
        return min(backoff if trouble.wait is None else trouble.wait, LONGEST_WAIT)

    async def _attempt(self, body: dict[str, Any], on_text: OnText) -> Completion:
        import httpx2

        tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
        heard = Completion(calls=ToolCallPieces(tools))
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers = {**headers, **self.secrets.headers}
        content = mend(json.dumps(body, ensure_ascii=False)).encode()
        timeout = httpx2.Timeout(SILENCE, connect=10.0)
        # One client per turn: its connections belong to this run's event loop, which the agent outlives.
        try:
            async with (
                http_client(self.base_url, self.allow_local, timeout=timeout) as client,
                client.stream("POST", chat_address(self.base_url), content=content, headers=headers) as got,
            ):
                await self._check(got, body)
                await self._listen(got, heard, on_text)
        except EventTooLong:
            raise self.error("sent an event that does not end") from None
        except zlib.error:
            raise self.error("sent an answer whose compression is broken") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._network_error(error, heard) from error
        return heard

    async def _listen(self, response: "httpx2.Response", heard: Completion, on_text: OnText) -> None:
        decoder = AnswerDecoder()
        start = bytearray()
        try:
            async with pieces_of(response) as pieces:
                async for piece in pieces:
                    start += piece[: max(200 - len(start), 0)]
                    if self._take(decoder.feed(piece), heard, on_text):
                        break
            if not heard.ended:
                self._take(decoder.close(), heard, on_text)
        except NotAnAnswer:
            kind = self.excerpt(response.headers.get("content-type", "") or "no content type")
            said = self.excerpt(start.decode("utf-8", "replace"))
            message = f"answered with {kind!r} where a chat completion was expected: {said}; {REMEDIES[404]}"
            raise self.error(message) from None
        _tell(heard, heard.close(), on_text)
        if heard.finish == "error":
            error = self.error("stopped with an error (finish_reason 'error')")
            raise _Transient(str(error), "server") if heard.is_empty else error
        if not heard.ended and not (decoder.whole and not heard.is_empty):
            if decoder.whole:
                raise self.error("answered without a completion")
            raise self.error(f"ended its reply in the middle{CUT_REMEDY}")

    def _take(self, events: list[ServerSentEvent], heard: Completion, on_text: OnText) -> bool:
        """Process some events; returns whether the stream is over."""
        for event in events:
            try:
                text = heard.add(event)
            except Unreadable as problem:
                if event.cut:
                    what = "ended its reply in the middle of an event that does not end"
                    raise self.error(what + CUT_REMEDY) from None
                message = f"sent something that is not a chat completion: {self.excerpt(event.data)}"
                raise self.error(message) from problem.__cause__
            except Reported as report:
                raise self._reported(report, heard) from None
            _tell(heard, text, on_text)
            if event.data.strip() == "[DONE]":
                return True
        return False

    def _reported(self, report: Reported, heard: Completion) -> Exception:
        said = report.error if isinstance(report.error, str) else json.dumps(report.error, ensure_ascii=False)
        error = self.error(f"reported an error: {self.excerpt(said)}")
        if report.code in TRANSIENT and heard.is_empty:
            return _Transient(str(error), "rate_limit" if report.code == 429 else "server")
        return error

    async def _check(self, response: "httpx2.Response", body: dict[str, Any]) -> None:
        status = response.status_code
        if response.is_success:
            if not knows_encoding(response):
                encoding = self.excerpt(encoding_of(response))
                raise self.error(f"compressed its answer as {encoding!r}, which nobody asked for")
            return
        if response.is_redirect:
            raise self.error(
                f"answered with a redirect ({status}), which is not followed; put its target into base_url"
            )
        said = await read_start(response, MAX_ERROR)
        detail = self.excerpt(said)
        message = f"answered {status}" + (f": {detail}" if detail else "")
        if status in TRANSIENT:
            kind: Trouble = "rate_limit" if status == 429 else "server"
            raise _Transient(str(self.error(message)), kind, retry_after(response.headers))
        remedy = f"; {REMEDIES[status]}" if status in REMEDIES else ""
        error = self.error(message + remedy)
        if (parameter := refused_parameter(status, said, body)) is not None:
            raise _Refused(parameter, str(error))
        raise error

    def _network_error(self, error: Exception, heard: Completion) -> Exception:
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return _Transient(
                str(self.error("can't be reached; check base_url and that the server runs")), "connection"
            )
        if isinstance(error, httpx2.TransportError) and heard.is_empty:
            what = f"broke off before it answered ({type(error).__name__})"
            return _Transient(str(self.error(what)), "connection")
        return self.error(f"broke off in the middle of its answer ({type(error).__name__}: {self.excerpt(str(error))})")

    def error(self, what: str) -> ModelError:
        """Create an error that names the agent and the endpoint."""
        return ModelError(f"the endpoint of agent {self.agent!r} at {public_address(self.base_url)} {what}")

    def excerpt(self, body: str) -> str:
        """The start of a server's response, or the error message in it, without secrets."""
        body = page_title(server_message(body) or body)
        words = printable_line(self.secrets.hidden(body))
        return words if len(words) <= 300 else words[:300] + "..."


def _tell(heard: Completion, text: str, on_text: OnText) -> None:
    if text:
        heard.first_piece = heard.first_piece or perf_counter()
        if on_text is not None:
            on_text(text)
