"""A reply during decoding: its tokens, its text, and the reason why it ends."""

from typing import Literal

from ..text.tokenizer import TextDecoder
from .sampler import Sampler

__all__ = ["Finish", "ReplyState"]

# Why decoding ended: an end-of-sequence token; a stop string or a finished grammar; no room for more tokens.
Finish = Literal["eos", "stop", "length"]


class ReplyState:
    """One row's reply. `decoder` is None for a model without a tokenizer."""

    def __init__(self, sampler: Sampler, decoder: TextDecoder | None, eos_ids: frozenset[int]):
        self.sampler = sampler
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._decoder = decoder
        self._eos_ids = eos_ids
        self._unread = ""  # final text that `read` has not returned yet

    @property
    def text(self) -> str:
        """The text so far, without a stop string."""
        return "" if self._decoder is None else self._decoder.text

    def take(self, token: int) -> Finish | None:
        """Append a sampled token. Returns why the reply ends with it, or None. An end-of-sequence token is not part
        of the reply.

        Raises ModelError where the logits were no numbers, or where the grammar does not allow the token.
        """
        if self.sampler.take(token) in self._eos_ids and not self.sampler.spec.ignore_eos:
            return self.end("eos")
        self.ids.append(token)
        if self._decoder is not None:
            self._unread += self._decoder.push(token)
        if self.sampler.over or (self._decoder is not None and self._decoder.stopped):
            return self.end("stop")
        return self.end("length") if len(self.ids) >= self.sampler.spec.max_new_tokens else None

    def end(self, finish: Finish) -> Finish:
        """End the reply here."""
        self.finish = finish
        if self._decoder is not None:
            self._unread += self._decoder.finish()
        return finish

    def read(self) -> str:
        """The text that has become final since the last call."""
        text, self._unread = self._unread, ""
        return text
