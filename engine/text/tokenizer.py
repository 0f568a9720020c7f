"""Text to tokens and back: offsets, chat templates, and replies decoded as they grow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cachegraph.errors import ModelError, library_errors

from .chat import ChatText, render_chat
from .chat_rules import ChatRules, as_parts, find_rules
from .chat_template import render_chat_template
from .control_tokens import ControlTokens, Encoded, TextRange
from .hide_control_tokens import hide

__all__ = ["Encoded", "TextDecoder", "Tokenizer"]


@dataclass(eq=False)
class Tokenizer:
    """A model's tokenizer. `raw` is transformers' own."""

    raw: Any
    chat_template: str | None = None  # overrides the tokenizer's own
    tools: Sequence[Mapping[str, Any]] = ()  # that the chat template tells the model of
    _known: dict[str, Any] = field(default_factory=dict, repr=False)  # what was found out, shared by its copies

    @property
    def has_chat(self) -> bool:
        return bool(self.chat_template or self.raw.chat_template)

    @property
    def controls(self) -> ControlTokens:
        """Its control tokens."""
        if "controls" not in self._known:
            own = self.raw.chat_template
            template = self.chat_template or ("".join(own.values()) if isinstance(own, dict) else own) or ""
            self._known["controls"] = ControlTokens(self.raw, template)
        controls: ControlTokens = self._known["controls"]
        return controls

    @property
    def rules(self) -> ChatRules:
        """What its chat template takes. Raises ModelError where it takes no messages at all."""
        if "rules" not in self._known:
            self._known["rules"] = find_rules(lambda messages: self._apply(messages, ()))
        rules: ChatRules = self._known["rules"]
        return rules

    def encode(self, text: str, *, special: bool, words: Sequence[TextRange] = ()) -> Encoded:
        """`special`: with the tokens that the model expects around a plain text (a chat template brings its own).

        `words` are the characters of a user's text, which never become control tokens.
        """
        with library_errors(lambda why: ModelError(f"the model's tokenizer can't read this text: {why}")):
            return self.controls.encode(text, special, words)

    def encode_words(self, text: str) -> Encoded:
        """The ids of a user's text alone, without control tokens in it or around it."""
        return self.encode(text, special=False, words=[(0, len(text))])

    @property
    def words_only(self) -> Any:
        """transformers' own tokenizer, for callers that pass a user's words alone."""
        return _WordsOnly(self)

    def decode(self, ids: Sequence[int]) -> str:
        """A reply's text, without special tokens."""
        text: str = self.raw.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, also of special ones."""
        return [self.raw.decode([token], clean_up_tokenization_spaces=False) for token in ids]

    def chat(self, messages: Sequence[Mapping[str, str]], *, reply_follows: bool = True) -> str:
        """The messages in the model's own chat format. Raises ModelError where its template refuses them."""
        return self._chat(messages, self.tools, reply_follows)

    def render(self, messages: Sequence[Mapping[str, str]]) -> ChatText:
        """The same with the place of every content, and of what else in the text the template did not write.

        Raises ModelError if the template makes control tokens of what the messages say.
        """
        tools, hidden = hide(list(self.tools), self.controls.named_in)
        rendered = render_chat(lambda chat: self._chat(chat, tools), messages)
        if not rendered.certain and any(self.controls.named_in(message["content"]) for message in messages):
            # The template rewrites contents, so its own words can't be told from control tokens in them.
            (masked, tools), hidden = hide([list(messages), list(self.tools)], self.controls.named_in)
            rendered = render_chat(lambda chat: self._chat(chat, tools), masked)
        if not rendered.certain:
            text, frame = rendered.text, rendered.frame
            if any(text.count(name) > frame.count(name) for name in self.controls.named_in(text)):
                raise ModelError("the model's chat template makes control tokens of what these messages say")
        return hidden.show(rendered)

    def _chat(
        self, messages: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]], reply_follows: bool = True
    ) -> str:
        given = [dict(message) for message in messages]
        return self._apply(as_parts(given) if self.rules.parts else given, tools, reply_follows)

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], reply_follows: bool = True
    ) -> str:
        try:
            return render_chat_template(
                self.raw.get_chat_template(self.chat_template, tools or None),
                messages,
                tools=tools or None,
                add_generation_prompt=reply_follows,
                enable_thinking=False,
                **self.raw.special_tokens_map,
            )
        except Exception as error:  # templates are the model author's code: whatever it raises is about these messages
            raise ModelError(f"the model's chat template refuses these messages: {error}") from error


class _WordsOnly:
    """A tokenizer of transformers as far as aligning needs it, for which no text names a control token."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer.raw, name)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return self._tokenizer.encode_words(text).ids


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
        # Only the unsettled ids are decoded again, after a little context, since some tokenizers join pieces. It begins
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
