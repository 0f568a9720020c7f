"""What a turn has told its listener, so that a second attempt repeats nothing."""

from cachegraph.agents.base import ToolCall, Turn
from cachegraph.errors import RunError

from .event_log import TurnEvents
from .remote_tools import TurnCalls

__all__ = ["SpokenText"]


class SpokenText:
    """Passes a turn's events on. An attempt after a replica's death must begin with the text that was passed on."""

    def __init__(self, agent: str, turn: Turn, tools: TurnCalls | None = None):
        self._agent = agent
        self.tools = tools
        self._turn = turn
        self._said = ""  # passed on
        self._heard = ""  # in this attempt
        self._calls = 0  # tool calls passed on
        self._heard_calls = 0
        self._is_shown = False  # whether the prompt's view was passed on

    @property
    def is_heard(self) -> bool:
        """Whether anyone listens, or makes tool calls."""
        turn = self._turn
        return any(listener is not None for listener in (turn.on_text, turn.on_tool, turn.on_prefill, self.tools))

    def begin(self) -> None:
        """Begin an attempt."""
        self._heard, self._heard_calls = "", 0

    def hear(self, heard: TurnEvents) -> None:
        """Pass on what is new. Raises RunError if the text differs from what was passed on before."""
        if heard.prompt is not None and self._turn.on_prompt is not None:
            self._turn.on_prompt(heard.prompt)
        if heard.view is not None and self._turn.on_prefill is not None and not self._is_shown:
            self._is_shown = True
            self._turn.on_prefill(heard.view)
        for event in heard.events:
            if isinstance(event, ToolCall):
                self._hear_call(event)
            elif isinstance(event, str):
                self._hear_text(event)

    def _hear_call(self, call: ToolCall) -> None:
        self._heard_calls += 1
        if self._heard_calls > self._calls:
            self._calls = self._heard_calls
            if self._turn.on_tool is not None:
                self._turn.on_tool(call)

    def _hear_text(self, piece: str) -> None:
        if self._turn.on_text is None:
            return
        self._heard += piece
        if not (self._heard.startswith(self._said) or self._said.startswith(self._heard)):
            raise RunError(
                f"a replica died while agent {self._agent!r} was writing, and another one writes a different reply; "
                "run again"
            )
        new = self._heard[len(self._said) :]
        if new:
            self._said = self._heard
            self._turn.on_text(new)
