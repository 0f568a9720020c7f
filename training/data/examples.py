"""One example as both models will read it: the same templates, chat formats and alignment as when the graph runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cachegraph.agents.local.ablation import mismatched_prompt
from cachegraph.agents.local.align_prompt import pair_own_prompts, share_messages
from cachegraph.agents.local.score import reply_tokens
from cachegraph.agents.prompt.prompt import Message, Piece, Prompt, Slot, handed_over_by, tokenize
from cachegraph.channels.cache.align import Aligner, SharedSpan, align_offsets
from cachegraph.channels.cache.edge_plan import FusePlan
from cachegraph.channels.cache.shared_prompt import SharedPrompt, share_by_ids
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.errors import ChannelError, InputError

from ..pair import End, Pair
from .dataset import TrainingExample

__all__ = [
    "FuseExample",
    "GraftExample",
    "JointExample",
    "PrivateText",
    "Replies",
    "fuse_example",
    "graft_example",
    "joint_example",
    "text_pairs",
]


@dataclass(frozen=True)
class Replies:
    """What may follow the prompt, as tokens of the receiver; `right` is the one to learn."""

    ids: tuple[tuple[int, ...], ...]
    right: int

    def alone(self) -> "Replies":
        """The right one without the others."""
        return Replies((self.ids[self.right],), 0)


@dataclass(frozen=True)
class PrivateText:
    """What only the sharer reads: its tokens up to the last private one, which of them are private, and the words.

    `spans` has, for each private token, the input it is of and the characters it covers. Equal texts are one.
    """

    ids: tuple[int, ...]
    private: tuple[int, ...]
    spans: tuple[tuple[str, int, int], ...]
    words: tuple[tuple[str, str], ...]  # (input, its value)


@dataclass(frozen=True)
class GraftExample:
    """The receiver reads `before`, then the text's translated cache, then `after`."""

    before: tuple[int, ...]
    text: PrivateText
    after: tuple[int, ...]
    replies: Replies


@dataclass(frozen=True, eq=False)
class FuseExample:
    """The receiver reads its prompt corrected as `reading` says; `group` is equal where the sharer reads the same.

    `own` is the sharer's prompt where it reads one of its own, and `prompt` the receiver's.
    """

    reading: SharedPrompt
    group: tuple[int, ...]
    replies: Replies
    prompt: Piece
    own: Piece | None = None

    def mismatched(self, other: "FuseExample") -> SharedPrompt:
        """How this prompt is read with the sharer's cache of that other lesson, as in a comparison's control."""
        if other.own is not None:
            return pair_own_prompts(self.prompt, [(other.own.ids, other.own.origins)])
        return mismatched_prompt(self.reading, other.reading)


@dataclass(frozen=True, eq=False)
class JointExample:
    """The receiver reads `graft`'s prompt around the text's translated cache, and where `reading` says so its own
    tokens are corrected; `own` is the sharer's prompt, `prompt` the receiver's."""

    graft: GraftExample
    reading: SharedPrompt
    prompt: Piece
    own: Piece

    @property
    def at(self) -> int:
        """The receiver's own tokens in front of the text."""
        return len(self.graft.before)

    def mismatched(self, other: "JointExample") -> SharedPrompt:
        """What both have read, where the sharer's cache is that of the other lesson."""
        return pair_own_prompts(self.prompt, [(other.own.ids, other.own.origins)])


def graft_example(pair: Pair, example: TrainingExample) -> GraftExample:
    """Raises InputError where nothing is private, or the prompt or its reply doesn't fit."""
    prompt, theirs = _prompts(pair, example, slots=True)
    return _graft_example(pair, example, prompt, theirs.whole)


def joint_example(pair: Pair, example: TrainingExample) -> JointExample:
    """Raises InputError as the two others do."""
    prompt, theirs = _prompts(pair, example, slots=True)
    mine, own = prompt.whole, theirs.whole
    graft = _graft_example(pair, example, prompt, own)
    reading = pair_own_prompts(mine, [(own.ids, own.origins)])
    _check_shared(pair, example, reading)
    _check_room(pair.sharer, len(own.ids), None, example)
    return JointExample(graft, reading, mine, own)


def _graft_example(pair: Pair, example: TrainingExample, prompt: Prompt, own: Piece) -> GraftExample:
    private = [i for i, origin in enumerate(own.origins) if origin is not None and origin.name not in prompt.seen]
    if not private:
        raise InputError(
            f"{example.place}: agent {pair.sharer.agent!r} reads nothing that {pair.receiver.agent!r} does not "
            "read itself, so there is nothing to graft; train a fuser of kind 'fuse' for this edge"
        )
    at = prompt.slots[0][0]
    before, after = tuple(prompt.ids[:at]), tuple(prompt.ids[at:])
    if not after:
        raise InputError(f"the prompt of agent {pair.receiver.agent!r} ends with the slot; put words behind it")
    spans = tuple((origin.name, origin.start, origin.end) for i in private if (origin := own.origins[i]))
    names = dict.fromkeys(name for name, _, _ in spans if name in example.inputs)  # the rest are the sharer's own words
    words = tuple((name, example.inputs[name]) for name in names)
    text = PrivateText(tuple(own.ids[: private[-1] + 1]), tuple(private), spans, words)
    replies = _replies(pair.receiver, prompt, example)
    _check_room(pair.receiver, len(before) + len(private) + len(after), replies, example)
    _check_room(pair.sharer, len(text.ids), None, example)
    return GraftExample(before, text, after, replies)


def fuse_example(pair: Pair, example: TrainingExample, fuser: Fuser, aligner: Aligner | None) -> FuseExample:
    """Raises InputError where the prompt doesn't fit, or the two can't be aligned."""
    prompt, theirs = _prompts(pair, example, slots=False)
    piece = prompt.whole
    card = fuser.card
    own = None
    try:
        if card.reads == "own-prompt":
            own = theirs.whole
            reading = pair_own_prompts(piece, [(own.ids, own.origins)])
        elif card.alignment == "ids":
            reading = share_by_ids(piece.ids, 1)
        else:
            plan = FusePlan(pair.sharer.engine, fuser, card.alignment, card.reads, False, aligner)
            reading = share_messages(prompt, piece, [plan])
    except ChannelError as error:
        raise InputError(f"{example.place}: {error}") from error
    _check_shared(pair, example, reading)
    replies = _replies(pair.receiver, prompt, example)
    _check_room(pair.receiver, len(reading.ids), replies, example)
    _check_room(pair.sharer, len(reading.sharers[0].ids), None, example)
    return FuseExample(reading, tuple(reading.sharers[0].ids), replies, piece, own)


def _check_shared(pair: Pair, example: TrainingExample, reading: SharedPrompt) -> None:
    if not any(stretch.pairs for stretch in reading.stretches):
        raise InputError(
            f"{example.place}: agents {pair.sharer.agent!r} and {pair.receiver.agent!r} read nothing in common, so "
            "there is nothing to fuse; train a translator, of kind 'graft', for this edge"
        )


def text_pairs(text: PrivateText, receiver: End) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """For each of the text's inputs: the receiver's own tokens of it, and (private token, receiver token) pairs.

    A private token stands beside the receiver token that covers its last character: the first to have read all of it.
    """
    tokenizer = receiver.engine.model.tokenizer
    assert tokenizer is not None
    found = []
    for name, value in text.words:
        own = tokenizer.encode_words(value)
        theirs = [(start, end) if of == name else (0, 0) for of, start, end in text.spans]
        found.append((own.ids, list(align_offsets(theirs, own.offsets, [SharedSpan(0, 0, len(value))]))))
    return found


def _prompts(pair: Pair, example: TrainingExample, *, slots: bool) -> tuple[Prompt, Prompt]:
    """The receiver's prompt, with a slot for the sharer's message or without a word of it, and the sharer's."""
    empty = dict.fromkeys((*pair.receiver.template.reads.names, *pair.sharer.template.reads.names), "")
    values = {**empty, **example.inputs}
    mine = _read(pair.receiver, values, [pair.sharer.agent] if slots else [])
    theirs = _read(pair.sharer, values, [])
    if slots and not any(isinstance(part, Slot) for part in mine.parts):
        raise InputError(f"the prompt of agent {pair.receiver.agent!r} has no slot for {pair.sharer.agent!r}")
    return mine, theirs


def _read(end: End, values: Mapping[str, str], slots: Sequence[str]) -> Prompt:
    tokenizer = end.engine.model.tokenizer
    assert tokenizer is not None
    messages: list[Message] = end.template.messages(values, slots=slots)
    if end.spec.generate.max_new_tokens == 0:  # it hands over its own words, too
        messages = [handed_over_by(each, end.agent) if each.role == "user" else each for each in messages]
    return tokenize(messages, tokenizer, end.chat)


def _replies(receiver: End, prompt: Prompt, example: TrainingExample) -> Replies:
    """The row's choices, or its response alone, tokenised as when the graph scores them."""
    tokenizer = receiver.engine.model.tokenizer
    assert tokenizer is not None
    last = prompt.parts[-1]
    ending = last.text if isinstance(last, Piece) else ""
    texts = example.choices or (example.response,)
    ids = tuple(tuple(reply_tokens(tokenizer, ending, text, receiver.chat)) for text in texts)
    if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
        raise InputError(f"{example.place}: the response {empty[0]!r} has no tokens")
    return Replies(ids, example.answer if example.choices and example.answer is not None else 0)


def _check_room(end: End, prompt: int, replies: Replies | None, example: TrainingExample) -> None:
    limit = end.engine.model.info.max_positions
    longest = max(map(len, replies.ids)) if replies is not None else 0
    if prompt + longest > limit:
        raise InputError(
            f"{example.place}: the prompt of agent {end.agent!r} has {prompt} tokens"
            + (f" and its response {longest}" if longest else "")
            + f", but {end.engine.model.name!r} reads at most {limit}; drop long rows, or shorten them"
        )
