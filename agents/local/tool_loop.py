"""Tool loop of a local agent: decode, call tools, append their results, until a reply calls none.

Every round extends the previous row, so nothing is computed twice.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cachegraph.channels.payload import Origin
from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ModelError, RunError

from ..base import Turn
from ..prompt.chat_layout import Mark, place_marks
from ..prompt.prompt import Piece, read_piece
from ..prompt.render_threads import TextWork
from ..token_budget import within_budget
from ..tools.agent_tools import ToolRounds
from ..tools.parse_calls import Heard, ReplyTextStream, hear
from .decode import add_reply, decode_reply, write
from .row import AgentRow

__all__ = ["ToolResultWriter", "replay_tool_rounds", "write_with_tools"]


@dataclass(frozen=True)
class ToolResultWriter:
    """Formats tool results for a model: through its chat template, or as plain text."""

    tokenizer: Tokenizer
    chat: bool
    work: TextWork = field(default_factory=TextWork)

    def piece(self, results: Sequence[str], origin: str) -> Piece:
        """The tokens after a reply with calls: the end of its turn, the results, and the start of the next reply."""
        if not self.chat:
            content, inside = _in_plain_text(results, origin)
            marks = [mark._replace(start=mark.start + 2, end=mark.end + 2) for mark in inside]
            return _whole(f"\n\n{content}\n\n", marks, self.tokenizer)
        result_marks = [[Mark(0, len(result), origin, 0, "value")] for result in results]
        try:
            return self._through_template([{"role": "tool", "content": result} for result in results], result_marks)
        except ModelError:  # the template rejects the tool role
            content, inside = _in_plain_text(results, origin)
            return self._through_template([{"role": "user", "content": content}], [inside])

    def _through_template(self, answers: list[dict[str, str]], marks: Sequence[Sequence[Mark]]) -> Piece:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}, *answers]
        rendered = self.tokenizer.render(messages)
        start = rendered.contents[1].end
        if not start or any(span.start == span.end for span in rendered.contents[2:]):
            raise ModelError("the model's chat template leaves out the results of tools")
        placed = [
            mark
            for answer_marks, span in zip(marks, rendered.contents[2:], strict=True)
            for mark in place_marks(answer_marks, span)
        ]
        placed += [Mark(first, last, "", 0, "made") for first, last in rendered.foreign if first >= start]
        moved = [mark._replace(start=mark.start - start, end=mark.end - start) for mark in placed]
        return _whole(rendered.text[start:], sorted(moved), self.tokenizer)


async def write_with_tools(
    engine: Engine,
    agent: str,
    spec: GenerateSpec,
    row: AgentRow,
    turn: Turn,
    began: float,
    turns: ToolRounds,
    writer: ToolResultWriter,
) -> AgentRow:
    """Decode, call tools and append results until a reply calls none. The row ends with that reply."""
    speaker = ReplyTextStream(turn.on_text)
    first_token: float | None = None
    while True:
        start = len(row.ids)
        left = None if turn.most_tokens is None else turn.most_tokens - row.tokens.generated
        round_spec = within_budget(spec, replace(turn, most_tokens=left))
        row = await write(engine, agent, round_spec, row, replace(turn, on_text=speaker.push, needs_cache=True), began)
        row.timing.first_token = first_token = first_token if first_token is not None else row.timing.first_token
        heard = turns.hear(row.text)
        _end_round(row, start, heard, speaker)
        if not heard.calls:
            row.text = speaker.text
            return row
        results = await turns.make(heard.calls)
        _read_on(engine, agent, row, await writer.work.run(partial(writer.piece, results, f"{agent}.tools")))


async def replay_tool_rounds(
    engine: Engine,
    agent: str,
    row: AgentRow,
    turn: Turn,
    ids: Sequence[int],
    stop: Sequence[str],
    rounds: Sequence[Sequence[str]],
    tools: Collection[str],
    writer: ToolResultWriter,
) -> None:
    """Append a recorded reply to its row, with the origins that `write_with_tools` gave it.

    `ids`: all tokens after the prompt. `rounds`: by round, the tool results that the model received. Raises RunError if
    the reply does not hold these results.
    """
    speaker, rest, name = ReplyTextStream(None), list(ids), turn.id or agent

    def take(said: Sequence[int], text: str) -> None:
        start = len(row.ids)
        speaker.push(text)
        add_reply(engine, name, row, said, stop)
        _end_round(row, start, hear(text, tools), speaker)

    for results in rounds:
        piece = await writer.work.run(partial(writer.piece, results, f"{agent}.tools"))
        for end in _places(rest, piece.ids):
            text = decode_reply(engine, rest[:end], stop)
            if len(hear(text, tools).calls) == len(results):
                break
        else:
            raise RunError(
                f"the recorded reply of agent {agent!r} does not hold the recorded results of its tools; "
                "remove that run and begin a new one"
            )
        take(rest[:end], text)
        row.ids += piece.ids
        row.origins += piece.origins
        rest = rest[end + len(piece.ids) :]
    take(rest, decode_reply(engine, rest, stop))


def _places(ids: Sequence[int], wanted: Sequence[int]) -> Iterator[int]:
    """Yield the indices at which `wanted` begins in `ids`."""
    return (at for at in range(len(ids) - len(wanted) + 1) if list(ids[at : at + len(wanted)]) == list(wanted))


def _end_round(row: AgentRow, start: int, heard: Heard, speaker: ReplyTextStream) -> None:
    """Emit the text of the reply that starts at token `start`, and make its origins relative to the whole reply."""
    speaker.end(heard.said)
    said = len(heard.said) if speaker.text.endswith(heard.said) else 0  # white space before a call is not emitted
    row.origins[start:] = [_said(origin, said, len(speaker.text) - said) for origin in row.origins[start:]]


def _read_on(engine: Engine, agent: str, row: AgentRow, piece: Piece) -> None:
    """Make the results pending; they are prefilled with the next reply."""
    if row.sharers is not None:
        raise RunError(
            f"agent {agent!r} can't call tools while a fuser corrects its reply; write `include_response: false`"
        )
    row.pending, row.positions = list(piece.ids), None
    row.ids += piece.ids
    row.origins += piece.origins
    limit = engine.model.info.max_positions
    if len(row.ids) >= limit:
        raise ModelError(
            f"with the results of its tools agent {agent!r} has read {len(row.ids)} tokens, and {engine.model.name!r} "
            f"reads at most {limit}; set a smaller tool_limits.result_bytes or rounds"
        )


def _whole(text: str, marks: Sequence[Mark], tokenizer: Tokenizer) -> Piece:
    (piece,) = read_piece(text, 0, len(text), marks, tokenizer, special=False)
    return piece


def _said(origin: Origin | None, said: int, before: int) -> Origin | None:
    """The origin of an entry within the first `said` characters of this round's reply, offset by earlier rounds."""
    if origin is None or origin.start >= said:
        return None
    return Origin(origin.name, origin.start + before, min(origin.end, said) + before)


def _in_plain_text(results: Sequence[str], origin: str) -> tuple[str, list[Mark]]:
    """Format the results as text for models without a tool role, and mark whose text is where."""
    text, marks = "", list[Mark]()
    for result in results:
        text += "\n<tool_response>\n" if text else "<tool_response>\n"
        marks.append(Mark(len(text), len(text) + len(result), "", 0, "made"))
        text += f"{result}\n</tool_response>"
    return text, [Mark(0, len(text), origin, 0, "own"), *marks]
