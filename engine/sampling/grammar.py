"""Grammars for replies that follow a JSON schema: before each token, a mask of those that may come next."""

import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cachegraph.errors import ModelError

from ..text.tokenizer import Tokenizer
from .json_schema import to_grammar
from .text_formats import limits

__all__ = ["GrammarState", "Grammars", "allowed"]


class GrammarState:
    """One reply's progress through a grammar."""

    def __init__(self, matcher: Any, vocabulary: int):
        self._matcher = matcher
        self._words = (vocabulary + 31) // 32

    @property
    def over(self) -> bool:
        """Whether nothing more can come: the reply is whole, and ends here."""
        return bool(self._matcher.is_stopped())

    @property
    def whole(self) -> bool:
        """Whether the reply may end here."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> Tensor:
        """A bit for each token that may come next, least first: (vocab / 32,) of int32, on the CPU."""
        bits = torch.zeros(self._words, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), bits.nbytes)
        self._check()
        return bits

    def take(self, token: int) -> None:
        """This token comes next."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelError(f"its json_schema can't be followed: {self._matcher.get_error().splitlines()[0]}")


class Grammars:
    """The grammars of one model's replies, each compiled once. Safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int]):
        self._tokenizer = tokenizer
        self._eos_ids = sorted(eos_ids)
        self._reading = threading.Lock()  # protects _vocabulary: reading it takes seconds
        self._vocabulary: Any = None
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def start(self, schema: dict[str, Any]) -> GrammarState:
        """A new reply's progress. The first of a schema takes a moment, the first of all seconds.

        Raises ModelError where the tokenizer is of a kind that no grammar can be followed with.
        """
        matcher = self._compiled(json.dumps(schema))
        return GrammarState(matcher.deep_copy(), self._vocabulary.vocab_size)

    def _compile(self, schema: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._read_vocabulary(), to_grammar(schema), log_level=0, limits=limits())
        if matcher.is_error():
            raise ModelError(f"json_schema can't be enforced: {matcher.get_error().splitlines()[0]}")
        return matcher

    def _read_vocabulary(self) -> Any:
        from llguidance import hf

        with self._reading:
            if self._vocabulary is None:
                try:
                    self._vocabulary = hf.from_tokenizer(self._tokenizer.raw, eos_token=self._eos_ids or None)
                except ValueError as error:
                    raise ModelError(
                        f"json_schema needs a tokenizer of the tokenizers library (a tokenizer.json): {error}"
                    ) from error
            return self._vocabulary


def allowed(masks: Sequence[Tensor], vocabulary: int, device: torch.device) -> Tensor:
    """(rows, vocab) of bool from masks as `GrammarState` gives them: an eighth of a byte a token goes to the device."""
    packed = torch.stack([mask.view(torch.uint8) for mask in masks])
    packed = (packed.pin_memory() if device.type == "cuda" else packed).to(device, non_blocking=True)
    bits = torch.arange(8, dtype=torch.uint8, device=device)
    spread = (packed[:, :, None] >> bits & 1).bool().flatten(1)
    missing = vocabulary - spread.shape[1]
    return spread[:, :vocabulary] if missing <= 0 else torch.nn.functional.pad(spread, (0, missing))
