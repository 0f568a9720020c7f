"""Text to tokens and back: offsets, chat templates, and replies decoded as they grow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cachegraph.errors import ModelError

__all__ = ["Encoded", "TextDecoder", "Tokenizer"]


class Encoded(NamedTuple):
    """Token ids, and for each the characters of the text that it covers: [start, end)."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(eq=False)
class Tokenizer:
    """A model's tokenizer. `raw` is transformers' own."""

    raw: Any
    chat_template: str | None = None  # overrides the tokenizer's own
    tools: Sequence[Mapping[str, Any]] = ()  # that the chat template tells the model of

    @property
    def has_chat(self) -> bool:
        return bool(self.chat_template or self.raw.chat_template)

    def encode(self, text: str, *, special: bool) -> Encoded:
        """`special`: with the tokens that the model expects around a plain text (a chat template brings its own)."""
        out = self.raw(text, add_special_tokens=special, return_offsets_mapping=True)
        return Encoded(list(out["input_ids"]), [(int(start), int(end)) for start, end in out["offset_mapping"]])

    def decode(self, ids: Sequence[int]) -> str:
        """A reply's text, without special tokens."""
        text: str = self.raw.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def chat(self, messages: Sequence[Mapping[str, str]], *, reply_follows: bool = True) -> str:
        """The messages in the model's own chat format. Raises ModelError where its template refuses them."""
        arguments: dict[str, Any] = {
            "add_generation_prompt": reply_follows,
            "tokenize": False,
            "enable_thinking": False,
        }
        if self.chat_template is not None:
            arguments["chat_template"] = self.chat_template
        if self.tools:
            arguments["tools"] = [dict(tool) for tool in self.tools]
        try:
            text: str = self.raw.apply_chat_template([dict(message) for message in messages], **arguments)
        except Exception as error:  # templates are the model author's code: whatever it raises is about these messages
            raise ModelError(f"the model's chat template refuses these messages: {error}") from error
        return text


class TextDecoder:
    """Turns a growing reply into text, piece by piece: no piece ends inside a character, nor inside a stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._settled = 0  # ids whose text is final
        self._points = [0]  # how many were settled at some moments before: between two characters
        self._before = ""  # text of the settled ids
        self._given = 0  # characters handed out
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        self._ids.append(token)
        # Only the unsettled ids are decoded anew, after a little context, since some tokenizers join pieces. It begins
        # between two characters: a byte of a broken one would spoil all bytes behind it.
        context = self._ids[self._points[0] : self._settled]
        fresh = self._decode([*context, *self._ids[self._settled :]])[len(self._decode(context)) :]
        self.text = self._before + fresh
        if not fresh.endswith("�"):
            self._before, self._settled = self.text, len(self._ids)
            self._points.append(self._settled)
            while self._points[1] <= self._settled - 4:
                del self._points[0]
            self._cut_at_stop()
            return self._give(self._held_back())
        return ""

    def finish(self) -> str:
        """What was held back; the reply is over."""
        self._cut_at_stop()
        return self._give(0)

    def _give(self, held_back: int) -> str:
        end = max(len(self.text) - held_back, self._given)
        piece, self._given = self.text[self._given : end], end
        return piece

    def _cut_at_stop(self) -> None:
        found = [at for at in (self.text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held_back(self) -> int:
        """How many last characters may be the beginning of a stop string."""
        if self.stopped:
            return 0
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])),
            default=0,
        )
