"""Decode a reply after a prefilled row, and record the origins of its entries."""

from collections.abc import Callable, Sequence
from functools import partial

from cachegraph.channels.cache.fused_decode import fused_generate
from cachegraph.channels.payload import Origin
from cachegraph.engine.engine import Engine
from cachegraph.engine.request import Generated
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.tokenizer import TextDecoder

from ..base import Turn
from ..schema_threads import run_checks
from ..structured_output import cut_short, parse_reply
from .row import AgentRow

__all__ = ["add_reply", "decode_reply", "write"]


async def write(engine: Engine, agent: str, spec: GenerateSpec, row: AgentRow, turn: Turn, began: float) -> AgentRow:
    """Decode the reply. The row gains its text, and its tokens if an edge transfers the cache. `began`: start of the
    turn.
    """
    room = engine.model.info.max_positions - len(row.ids)
    spec = spec.model_copy(update={"max_new_tokens": min(spec.max_new_tokens, room)})
    done = await _generate(engine, spec, row, turn.on_text)
    row.segments, row.pending, row.text, row.finish = done.segments, [], done.text, done.finish
    row.add_cost(done.cost)
    if spec.json_schema is not None:
        if not done.whole:
            full = spec.max_new_tokens == room
            raise cut_short(agent, len(done.ids), "stop" if done.finish == "stop" else "room" if full else "length")
        row.data = await run_checks(partial(parse_reply, agent, done.text, spec.json_schema), len(done.text))
    if done.cost.first_token is not None:
        row.timing.first_token = done.cost.first_token - began
    if turn.needs_cache:
        await _keep(engine, turn.id or agent, row, done, spec.stop)
    return row


async def _generate(
    engine: Engine, spec: GenerateSpec, row: AgentRow, on_text: Callable[[str], None] | None
) -> Generated:
    seen = row.ids[: len(row.ids) - len(row.pending)]
    if row.sharers is not None:
        return await fused_generate(
            engine, row.sharers, row.pending, row.segments, spec, positions=row.positions, on_text=on_text, seen=seen
        )
    return await engine.generate(row.pending, row.segments, spec, positions=row.positions, on_text=on_text, seen=seen)


async def _keep(engine: Engine, agent: str, row: AgentRow, done: Generated, stop: Sequence[str]) -> None:
    """Append the reply to the row, including its last token, which decoding may not have computed."""
    read = sum(map(len, row.segments)) - len(row.ids)
    if done.ids[read:]:
        last = await engine.prefill(done.ids[read:], row.segments, seen=[*row.ids, *done.ids[:read]])
        row.segments = last.segments
        row.timing.prefill += last.cost.prefill
        row.tokens.prefilled += last.cost.prefilled
    add_reply(engine, agent, row, done.ids, stop)


def add_reply(engine: Engine, agent: str, row: AgentRow, ids: Sequence[int], stop: Sequence[str]) -> None:
    """Record the origins of the reply's entries.

    Special tokens, and a stop string with everything after it, get no origin, so that no receiver takes them.
    """
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    decoder = TextDecoder(tokenizer.decode, stop)
    for token in ids:
        start, over = len(decoder.text), decoder.stopped
        decoder.push(token)
        row.ids.append(token)
        said = token not in tokenizer.controls.special and not over
        row.origins.append(Origin(agent, start, len(decoder.text)) if said else None)
    decoder.finish()
    if decoder.stopped:
        _cut(row.origins, len(row.origins) - len(ids), len(decoder.text))


def decode_reply(engine: Engine, ids: Sequence[int], stop: Sequence[str]) -> str:
    """The text of a reply's tokens, up to its first stop string."""
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    decoder = TextDecoder(tokenizer.decode, stop)
    for token in ids:
        decoder.push(token)
    decoder.finish()
    return decoder.text


def _cut(origins: list[Origin | None], first: int, length: int) -> None:
    """Remove the origins beyond the first `length` characters of the reply, whose entries begin at `first`."""
    for index, origin in enumerate(origins[first:], first):
        if origin is not None:
            origins[index] = origin._replace(end=min(origin.end, length)) if origin.start < length else None
