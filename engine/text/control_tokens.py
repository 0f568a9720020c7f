"""Control tokens: which ids of a tokenizer steer the model, and how text that names them is encoded as plain text.

A tokenizer looks for its added tokens in any text, so a document that says `<|im_end|>` would end a turn. `encode` is
told which characters are a user's words, and makes control tokens only of the other characters. Where no words name a
control token, the ids are the tokenizer's own, also at the borders of the words.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from cachegraph.errors import ModelError

__all__ = ["ControlTokens", "Encoded", "TextRange"]

TextRange = tuple[int, int]
_FILLER = "."  # stands for words while the frame around them is encoded
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class Encoded(NamedTuple):
    """Token ids, and for each the characters of the text that it covers: [start, end)."""

    ids: list[int]
    offsets: list[TextRange]


class _Mark(NamedTuple):
    """A control token in a text, without the white space that it swallows."""

    id: int
    start: int
    end: int


class _Token(NamedTuple):
    id: int
    start: int
    end: int
    sign: bool  # it stands for a control token that the text may have


class ControlTokens:
    """The control tokens of a tokenizer: the special ones, and those added tokens that its chat template writes."""

    def __init__(self, raw: Any, template: str):
        self._raw = raw
        self._backend: Backend = raw.backend_tokenizer
        special = set(raw.all_special_ids)
        self._added: dict[int, Any] = dict(sorted(self._backend.get_added_tokens_decoder().items()))
        self.contents: dict[int, str] = {
            id_: added.content
            for id_, added in self._added.items()
            if added.special or id_ in special or (added.content.strip() and added.content in template)
        }
        for id_ in special - self.contents.keys():
            self.contents[id_] = raw.convert_ids_to_tokens(id_)
        self.special = frozenset(special) | {id_ for id_, added in self._added.items() if added.special}
        self._unknown: int | None = raw.unk_token_id
        self._without_names: Any = None  # the tokenizer's model with no control token in its vocabulary, once needed

    def encode(self, text: str, special: bool, words: Sequence[TextRange]) -> Encoded:
        """`special`: with the tokens that the model expects around a plain text. `words` never make a control token.

        Raises ModelError where this tokenizer can't keep them apart.
        """
        encoded = _encoded(self._raw(text, add_special_tokens=special, return_offsets_mapping=True))
        words = _merged(words)
        if not words:
            return encoded
        marks = self._frame_marks(text, words)
        if self._marks(text, encoded) == marks:
            return encoded
        around = self._around(text, encoded) if special else ([], [])
        inside = self._encode_apart(text, marks)
        return Encoded(
            [*around[0], *inside.ids, *around[1]],
            [*((0, 0) for _ in around[0]), *inside.offsets, *((0, 0) for _ in around[1])],
        )

    def named_in(self, text: str) -> list[str]:
        """The control tokens whose names stand in a text, in any case; the longest first."""
        low = text.lower()
        return sorted({name for name in self.contents.values() if name.lower() in low}, key=lambda name: -len(name))

    def _marks(self, text: str, encoded: Encoded) -> list[_Mark]:
        """The control tokens that characters of the text have made."""
        found = []
        for id_, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            name = self.contents.get(id_)
            if name is None or start >= end:
                continue
            at = text.find(name, start, end)
            if at >= 0:
                found.append(_Mark(id_, at, at + len(name)))
            elif id_ != self._unknown:  # it matched what the normalizer made of the text
                bare = text[start:end]
                first = start + len(bare) - len(bare.lstrip())
                found.append(_Mark(id_, first, max(start + len(bare.rstrip()), first)))
        return found

    def _frame_marks(self, text: str, words: Sequence[TextRange]) -> list[_Mark]:
        """The control tokens that the text has without the words."""
        frame, starts, shifts, end = "", [0], [0], 0
        for start, stop in words:
            frame += text[end:start] + _FILLER
            starts.append(len(frame))
            shifts.append(stop - len(frame))
            end = stop
        frame += text[end:]
        encoded = _encoded(self._raw(frame, add_special_tokens=False, return_offsets_mapping=True))
        moved = []
        for id_, start, stop in self._marks(frame, encoded):
            shift = shifts[bisect_right(starts, start) - 1]
            moved.append(_Mark(id_, start + shift, stop + shift))
        return moved

    def _around(self, text: str, encoded: Encoded) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts in front of a text and behind it."""
        bare = self._raw(text, add_special_tokens=False)["input_ids"]
        count = len(bare)
        for start in range(len(encoded.ids) - count + 1):
            if encoded.ids[start : start + count] == bare:
                return encoded.ids[:start], encoded.ids[start + count :]
        raise ModelError("the model's tokenizer rewrites a text to which it adds tokens; use a chat template")

    def _encode_apart(self, text: str, marks: Sequence[_Mark]) -> Encoded:
        """The whole text with these control tokens and no other ones.

        A copy of the tokenizer that knows them by names that the text doesn't hold reads the text with these names.
        """
        signs = _unused_signs(text, [mark.id for mark in marks])
        signed, places = _signed(text, marks, signs)
        for hidden in (False, True):
            model = self._model_without_names() if hidden else self._backend.model
            for normalized in (None, False):
                tokens = self._read(model, signs, normalized, signed)
                read = [
                    token._replace(start=places.original(token.start), end=places.original(token.end))
                    for token in tokens
                ]
                if [token.id for token in read if token.sign] == [mark.id for mark in marks] and not any(
                    self._is_leak(token, text) for token in read
                ):
                    return Encoded([token.id for token in read], [(token.start, token.end) for token in read])
        raise ModelError(
            "the model's tokenizer can't tell its control tokens from the words of a value; leave them out of the value"
        )

    def _is_leak(self, token: "_Token", text: str) -> bool:
        name = self.contents.get(token.id)
        return (
            not token.sign and name is not None and (token.id != self._unknown or name in text[token.start : token.end])
        )

    def _read(self, model: Any, signs: dict[int, str], normalized: bool | None, text: str) -> "list[_Token]":
        """A text in which signs stand for control tokens, as a tokenizer with this model reads it."""
        reader = Backend(model)
        for part in _PARTS:
            if (value := getattr(self._backend, part)) is not None:
                setattr(reader, part, value)
        names = {id_: added.content for id_, added in self._added.items() if id_ not in self.contents} | signs
        reader.add_tokens([self._renamed(id_, name, normalized) for id_, name in names.items()])
        known = {reader.token_to_id(name): id_ for id_, name in names.items()}
        standing = {reader.token_to_id(name) for name in signs.values()}
        read = reader.encode(text, add_special_tokens=False)
        return [
            _Token(known.get(id_, id_), start, end, id_ in standing)
            for id_, (start, end) in zip(read.ids, read.offsets, strict=True)
        ]

    def _renamed(self, id_: int, name: str, normalized: bool | None) -> AddedToken:
        added = self._added.get(id_)
        if added is None:
            return AddedToken(name, normalized=False)
        sign = id_ in self.contents
        return AddedToken(
            name,
            single_word=added.single_word and not sign,
            lstrip=added.lstrip,
            rstrip=added.rstrip,
            normalized=added.normalized if normalized is None or not sign else normalized,
        )

    def _model_without_names(self) -> Any:
        """The tokenizer's model in whose vocabulary control tokens have names that no text holds."""
        if self._without_names is None:
            tokenizer_json = json.loads(Backend(self._backend.model).to_str())
            model, names = tokenizer_json["model"], {*self.contents.values()}
            hidden = {name: f"\ufdd1{number}\ufdd1" for number, name in enumerate(sorted(names))}
            vocabulary = model["vocab"]
            if isinstance(vocabulary, dict):
                model["vocab"] = {hidden.get(piece, piece): id_ for piece, id_ in vocabulary.items()}
            else:
                model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
            if model.get("unk_token") in hidden:
                model["unk_token"] = hidden[model["unk_token"]]
            if "merges" in model:
                model["merges"] = [pair for pair in model["merges"] if not _makes(pair, names)]
            self._without_names = Backend.from_str(json.dumps(tokenizer_json)).model
        return self._without_names


class _Places(NamedTuple):
    """From characters of a signed text to those of the text itself."""

    starts: list[int]
    ends: list[int]
    marks: list[TextRange]  # of the text itself

    def original(self, at: int) -> int:
        index = bisect_right(self.starts, at) - 1
        if index < 0:
            return at
        start, end = self.marks[index]
        if at >= self.ends[index]:
            return at - self.ends[index] + end
        return start if at == self.starts[index] else end


def _encoded(out: Any) -> Encoded:
    return Encoded(list(out["input_ids"]), [(int(start), int(end)) for start, end in out["offset_mapping"]])


def _merged(intervals: Iterable[TextRange]) -> list[TextRange]:
    """Sorted, without empty ones, and merged where they touch or overlap."""
    merged: list[TextRange] = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _unused_signs(text: str, ids: Iterable[int]) -> dict[int, str]:
    low, number = text.lower(), 0
    while f"qz{number}m" in low:
        number += 1
    return {id_: f"qz{number}m{id_}z0" for id_ in sorted(set(ids))}


def _signed(text: str, marks: Sequence[_Mark], signs: dict[int, str]) -> tuple[str, _Places]:
    parts, places, length, end = [], _Places([], [], []), 0, 0
    for id_, start, stop in marks:
        parts += [text[end:start], signs[id_]]
        length += start - end
        places.starts.append(length)
        length += len(signs[id_])
        places.ends.append(length)
        places.marks.append((start, stop))
        end = stop
    return "".join([*parts, text[end:]]), places


def _makes(pair: Any, names: set[str]) -> bool:
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first in names or second in names or first + second in names
