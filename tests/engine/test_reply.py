"""The one rule for where a reply ends, which plain decoding and fused decoding share."""

from collections.abc import Sequence
from typing import Any

import pytest

from cachegraph.engine.sampling.reply import ReplyState
from cachegraph.engine.sampling.sampler import Sampler
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.tokenizer import TextDecoder
from cachegraph.errors import ModelError

EOS = 0


class Grammar:
    """Is over after so many tokens."""

    def __init__(self, length: int):
        self.left = length

    @property
    def over(self) -> bool:
        return self.left == 0

    whole = over

    def take(self, token: int) -> None:
        self.left -= 1


def letters(ids: Sequence[int]) -> str:
    return "".join(chr(id_) for id_ in ids)


def reply(grammar: Any = None, **spec: Any) -> ReplyState:
    generate = GenerateSpec(**spec)
    sampler = Sampler(generate, frozenset([EOS]), grammar=grammar)
    return ReplyState(sampler, TextDecoder(letters, generate.stop), frozenset([EOS]))


@pytest.mark.parametrize(
    ("spec", "tokens", "finish", "ids", "text"),
    [
        ({}, "ab\0", "eos", "ab", "ab"),
        ({"ignore_eos": True, "max_new_tokens": 3}, "a\0b", "length", "a\0b", "a\0b"),
        ({"max_new_tokens": 2}, "ab", "length", "ab", "ab"),
        ({"stop": ["bc"]}, "abc", "stop", "abc", "a"),
        ({"stop": ["bc"], "max_new_tokens": 3}, "abc", "stop", "abc", "a"),
        ({"stop": ["bcd"]}, "abc\0", "eos", "abc", "abc"),
        ({"grammar": Grammar(2)}, "ab", "stop", "ab", "ab"),
        ({"grammar": Grammar(2), "max_new_tokens": 2}, "ab", "stop", "ab", "ab"),
    ],
)
def test_a_reply_ends_at_the_first_reason_and_streams_all_of_its_text(
    spec: dict[str, Any], tokens: str, finish: str, ids: str, text: str
) -> None:
    grammar = spec.get("grammar")
    made = reply(Grammar(grammar.left) if grammar else None, **{k: v for k, v in spec.items() if k != "grammar"})
    pieces = []
    for number, token in enumerate(tokens, 1):
        found = made.take(ord(token))
        pieces.append(made.read())
        assert (found is None) == (number < len(tokens))
    assert (made.finish, letters(made.ids), made.text, "".join(pieces)) == (finish, ids, text, text)


def test_a_reply_that_is_ended_from_outside_gives_the_text_that_it_held_back() -> None:
    made = reply(stop=["bc"])
    assert [made.take(ord(token)) for token in "ab"] == [None, None]
    assert made.read() == "a"
    assert made.end("length") == made.finish == "length"
    assert (made.read(), made.text) == ("b", "ab")


def test_logits_that_are_no_numbers_raise_and_a_model_without_a_tokenizer_writes_no_text() -> None:
    with pytest.raises(ModelError, match="logits are not numbers"):
        reply().take(-1)
    silent = ReplyState(Sampler(GenerateSpec(max_new_tokens=1), frozenset()), None, frozenset())
    assert (silent.take(7), silent.ids, silent.text, silent.read()) == ("length", [7], "", "")
