"""FunctionAgent: calls a Python function once a turn."""

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio.to_thread
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from cachegraph.channels.payload import EdgeReport, Payload
from cachegraph.channels.peer import Peer
from cachegraph.common.abandoned_threads import run_or_abandon
from cachegraph.common.surrogates import mend, mend_json
from cachegraph.errors import RunError

from ..base import CLOSED, Reply, Timing, Turn
from .arguments import arguments_of, fit
from .import_function import Function, find_function
from .spec import FunctionSpec

__all__ = ["FunctionAgent"]


class FunctionAgent:
    """Calls a function once a turn. A sync function runs in a thread and can't be interrupted."""

    def __init__(
        self,
        name: str,
        path: str,
        function: Function | None,
        folder: Path,
        *,
        inputs: Sequence[str],
        upstream: Sequence[str],
    ):
        self.name = name
        self._path = path
        self._folder = folder
        self._function = function
        self._known = (*inputs, *upstream)
        self._arguments: dict[str, TypeAdapter[Any]] = {}

    async def open(self) -> None:
        """Import the function if it was given by name. Raises ConfigError, or RecipeError for an unfilled parameter."""
        if self._function is None:
            self._function = await anyio.to_thread.run_sync(find_function, self._path, self.name, self._folder)
        self._arguments = arguments_of(self._function, self.name, self._known)

    def peer(self) -> Peer:
        return Peer(self.name, self._path, why_no_cache=f"agent {self.name!r} {FunctionSpec.no_cache}")

    async def turn(self, turn: Turn) -> Reply:
        """Call the function. Raises RunError with its exception, or InputError for an argument that does not fit."""
        began = perf_counter()
        if self._function is None:
            raise RunError(CLOSED.format(repr(self.name)))
        payloads = {delivery.payload.sender: delivery.payload for delivery in turn.deliveries}
        values = {name: _planes(value) for name, value in turn.inputs.items()}
        values |= {name: _planes(payload.data, await payload.read()) for name, payload in payloads.items()}
        wanted = {name: adapter for name, adapter in self._arguments.items() if name in values}
        given = {name: fit(self._path, name, adapter, values[name]) for name, adapter in wanted.items()}
        text, data = _reply(await self._call(self._function, given), self._path)
        if turn.on_text is not None and text:
            turn.on_text(text)
        edges = {}
        for delivery in turn.deliveries:
            edges[delivery.payload.sender] = report = EdgeReport.of(delivery.route)
            report.bytes = len((delivery.payload.text or "").encode())
        return Reply(Payload(self.name, text, data=data), Timing(total=perf_counter() - began), edges=edges)

    async def close(self) -> None:
        """No-op."""

    async def _call(self, function: Function, given: Mapping[str, Any]) -> Any:
        try:
            if _is_async(function):
                return await function(**given)
            result = await run_or_abandon(partial(function, **given))
            return await result if inspect.isawaitable(result) else result
        except Exception as error:  # a user's code
            raise RunError(f"the function {self._path!r} raised {type(error).__name__}: {error}") from error


def _is_async(function: Function) -> bool:
    target = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004


def _planes(*planes: Any) -> list[Any]:
    """The candidate values for an argument: the data of a payload, then its text."""
    return [plane for plane in planes if plane is not None]


def _reply(value: Any, path: str) -> tuple[str, Any]:
    """Split a return value into text and data. A text has no data; None is an empty text."""
    if value is None or isinstance(value, str):
        return mend(value or ""), None
    try:
        data = mend_json(to_jsonable_python(mend_json(value)))  # pydantic refuses keys with half a character
        return json.dumps(data, ensure_ascii=False, allow_nan=False), data
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise RunError(
            f"the function {path!r} returned {type(value).__name__}, which is neither text nor a JSON value: {error}"
        ) from error
