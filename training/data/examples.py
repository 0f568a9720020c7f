"""Examples as both models' tokens, with the templates, chat formats and alignment of the running graph."""

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
from cachegraph.channels.payload import JOINT
from cachegraph.errors import ChannelError, InputError

from ..pair import End, Pair
from .dataset import TrainingExample

__all__ = [
    "FuseExample",
    "GraftExample",
    "JointExample",
    "PrivateText",
    "Replies",
    "WordsExample",
    "fuse_example",
    "graft_example",
    "joint_example",
    "text_pairs",
    "words_example",
]


@dataclass(frozen=True)
class Replies:
    """Possible replies as the receiver's tokens. `right` is the index of the correct one."""

    ids: tuple[tuple[int, ...], ...]
    right: int

    def alone(self) -> "Replies":
        """The correct reply only."""
        return Replies((self.ids[self.right],), 0)


@dataclass(frozen=True)
class PrivateText:
    """Text that only the sharer reads. `ids` are its tokens up to the last private one, `private` their indices.

    `spans` has for each private token its input and the characters that it covers. Equal texts compare equal.
    """

    ids: tuple[int, ...]
    private: tuple[int, ...]
    spans: tuple[tuple[str, int, int], ...]
    words: tuple[tuple[str, str], ...]  # (input, its value)


@dataclass(frozen=True)
class GraftExample:
    """The receiver prefills `before`, gets the text's translated cache, then prefills `after`."""

    before: tuple[int, ...]
    text: PrivateText
    after: tuple[int, ...]
    replies: Replies


@dataclass(frozen=True, eq=False)
class FuseExample:
    """The receiver prefills its prompt, and the fuser corrects its cache as `shared_prompt` says.

    `group` holds the sharer's tokens, `prompt` the receiver's prompt, `own` the sharer's if it has one of its own.
    """

    shared_prompt: SharedPrompt
    group: tuple[int, ...]
    replies: Replies
    prompt: Piece
    own: Piece | None = None

    def mismatched(self, other: "FuseExample") -> SharedPrompt:
        """The shared prompt with the sharer's cache of another example, as in the `mismatched` control."""
        if other.own is not None:
            return pair_own_prompts(self.prompt, [(other.own.ids, other.own.origins)])
        return mismatched_prompt(self.shared_prompt, other.shared_prompt)


@dataclass(frozen=True, eq=False)
class JointExample:
    """The receiver prefills `graft`'s prompt around the translated cache, corrected as `shared_prompt` says.

    `own` is the sharer's prompt, `prompt` the receiver's."""

    graft: GraftExample
    shared_prompt: SharedPrompt
    prompt: Piece
    own: Piece

    @property
    def at(self) -> int:
        """The number of the receiver's own tokens before the text."""
        return len(self.graft.before)

    def mismatched(self, other: "JointExample") -> SharedPrompt:
        """The shared prompt with the sharer's cache of the other example."""
        return pair_own_prompts(self.prompt, [(other.own.ids, other.own.origins)])


@dataclass(frozen=True, eq=False)
class WordsExample:
    """The receiver prefills a prompt that has the sharer's prompt, `text`, as words."""

    prompt: tuple[int, ...]
    text: str
    inputs: Mapping[str, str]
    replies: Replies

    def about(self, pair: Pair, text: str) -> tuple[int, ...]:
        """The prompt with the text of another example, as in the `mismatched` control."""
        return tuple(_prompt_with_words(pair, self.inputs, text).ids)


def graft_example(pair: Pair, example: TrainingExample) -> GraftExample:
    """Encode an example for a translator. Raises InputError if nothing is private, or a text is too long."""
    prompt, sharer_prompt = _prompts(pair, example, slots=True)
    return _graft_example(pair, example, prompt, sharer_prompt.whole)


def joint_example(pair: Pair, example: TrainingExample) -> JointExample:
    """Encode an example for a translator and a fuser. Raises InputError as `graft_example` and `fuse_example` do."""
    prompt, sharer_prompt = _prompts(pair, example, slots=True)
    receiver_piece, own = prompt.whole, sharer_prompt.whole
    graft = _graft_example(pair, example, prompt, own)
    shared_prompt = pair_own_prompts(receiver_piece, [(own.ids, own.origins)])
    _check_shared(pair, example, shared_prompt)
    _check_room(pair.sharer, len(own.ids), None, example)
    return JointExample(graft, shared_prompt, receiver_piece, own)


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
        raise InputError(f"the prompt of agent {pair.receiver.agent!r} ends with the slot; put words after it")
    spans = tuple((origin.name, origin.start, origin.end) for i in private if (origin := own.origins[i]))
    names = dict.fromkeys(
        name for name, _, _ in spans if name in example.inputs
    )  # other names are the sharer's own words
    words = tuple((name, example.inputs[name]) for name in names)
    text = PrivateText(tuple(own.ids[: private[-1] + 1]), tuple(private), spans, words)
    replies = _replies(pair.receiver, prompt, example)
    _check_room(pair.receiver, len(before) + len(private) + len(after), replies, example)
    _check_room(pair.sharer, len(text.ids), None, example)
    return GraftExample(before, text, after, replies)


def fuse_example(pair: Pair, example: TrainingExample, fuser: Fuser, aligner: Aligner | None) -> FuseExample:
    """Encode an example for a fuser. Raises InputError if a prompt is too long, or the two can't be aligned."""
    prompt, sharer_prompt = _prompts(pair, example, slots=False)
    piece = prompt.whole
    card = fuser.card
    own = None
    try:
        if card.reads == "own-prompt":
            own = sharer_prompt.whole
            shared_prompt = pair_own_prompts(piece, [(own.ids, own.origins)])
        elif card.alignment == "ids":
            shared_prompt = share_by_ids(piece.ids, 1)
        else:
            plan = FusePlan(pair.sharer.engine, fuser, card.alignment, card.reads, False, aligner)
            shared_prompt = share_messages(prompt, piece, [plan])
    except ChannelError as error:
        raise InputError(f"{example.place}: {error}") from error
    _check_shared(pair, example, shared_prompt)
    replies = _replies(pair.receiver, prompt, example)
    _check_room(pair.receiver, len(shared_prompt.ids), replies, example)
    _check_room(pair.sharer, len(shared_prompt.sharers[0].ids), None, example)
    return FuseExample(shared_prompt, tuple(shared_prompt.sharers[0].ids), replies, piece, own)


def words_example(pair: Pair, example: TrainingExample, *, room: int) -> WordsExample:
    """Encode an example for a receiver that reads all words, as in the variant `ceiling`.

    `room` is the number of positions in front of the prompt. Raises InputError if the prompt is too long.
    """
    sharer_messages = pair.sharer.template.messages(_values(pair, example.inputs))
    text = JOINT.join(message.content.text for message in sharer_messages if message.role == "user")
    prompt = _prompt_with_words(pair, example.inputs, text)
    replies = _replies(pair.receiver, prompt, example)
    _check_room(pair.receiver, len(prompt.ids), replies, example, prefix=room)
    return WordsExample(tuple(prompt.ids), text, example.inputs, replies)


def _prompt_with_words(pair: Pair, inputs: Mapping[str, str], text: str) -> Prompt:
    return _render(pair.receiver, {**_values(pair, inputs), pair.sharer.agent: text}, [])


def _values(pair: Pair, inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs, and an empty text for every other name of the two prompts."""
    empty = dict.fromkeys((*pair.receiver.template.reads.names, *pair.sharer.template.reads.names), "")
    return {**empty, **inputs}


def _check_shared(pair: Pair, example: TrainingExample, shared_prompt: SharedPrompt) -> None:
    if not any(stretch.pairs for stretch in shared_prompt.stretches):
        raise InputError(
            f"{example.place}: agents {pair.sharer.agent!r} and {pair.receiver.agent!r} read nothing in common, so "
            "there is nothing to fuse; train a translator, of kind 'graft', for this edge"
        )


def text_pairs(text: PrivateText, receiver: End) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """For each of the text's inputs: the receiver's tokens of it, and (private token, receiver token) index pairs.

    A private token is paired with the receiver token that covers its last character, the first that has read all of it.
    """
    tokenizer = receiver.engine.model.tokenizer
    assert tokenizer is not None
    found = []
    for name, value in text.words:
        own = tokenizer.encode_words(value)
        spans = [(start, end) if of == name else (0, 0) for of, start, end in text.spans]
        found.append((own.ids, list(align_offsets(spans, own.offsets, [SharedSpan(0, 0, len(value))]))))
    return found


def _prompts(pair: Pair, example: TrainingExample, *, slots: bool) -> tuple[Prompt, Prompt]:
    """The prompts of receiver and sharer. `slots`: the receiver's has a slot for the sharer's message."""
    values = _values(pair, example.inputs)
    receiver_prompt = _render(pair.receiver, values, [pair.sharer.agent] if slots else [])
    sharer_prompt = _render(pair.sharer, values, [])
    if slots and not any(isinstance(part, Slot) for part in receiver_prompt.parts):
        raise InputError(f"the prompt of agent {pair.receiver.agent!r} has no slot for {pair.sharer.agent!r}")
    return receiver_prompt, sharer_prompt


def _render(end: End, values: Mapping[str, str], slots: Sequence[str]) -> Prompt:
    tokenizer = end.engine.model.tokenizer
    assert tokenizer is not None
    messages: list[Message] = end.template.messages(values, slots=slots)
    if end.spec.generate.max_new_tokens == 0:  # it writes nothing and hands over its prompt
        messages = [handed_over_by(message, end.agent) if message.role == "user" else message for message in messages]
    return tokenize(messages, tokenizer, end.chat)


def _replies(receiver: End, prompt: Prompt, example: TrainingExample) -> Replies:
    """The example's choices, or its response alone, tokenised as when the graph scores them."""
    tokenizer = receiver.engine.model.tokenizer
    assert tokenizer is not None
    last = prompt.parts[-1]
    ending = last.text if isinstance(last, Piece) else ""
    texts = example.choices or (example.response,)
    ids = tuple(tuple(reply_tokens(tokenizer, ending, text, receiver.chat)) for text in texts)
    if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
        raise InputError(f"{example.place}: the response {empty[0]!r} has no tokens")
    return Replies(ids, example.answer if example.choices and example.answer is not None else 0)


def _check_room(end: End, prompt: int, replies: Replies | None, example: TrainingExample, *, prefix: int = 0) -> None:
    limit = end.engine.model.info.max_positions
    longest = max(map(len, replies.ids)) if replies is not None else 0
    if prefix + prompt + longest > limit:
        raise InputError(
            f"{example.place}: the prompt of agent {end.agent!r} has {prompt} tokens"
            + (f" behind a prefix of {prefix}" if prefix else "")
            + (f" and its response {longest}" if longest else "")
            + f", but {end.engine.model.name!r} reads at most {limit}; drop long examples, or shorten them"
        )
