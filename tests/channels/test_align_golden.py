"""Alignments between the demo models' tokenizers, id for id as the published implementation recorded them."""

import json
from pathlib import Path
from typing import Any

import pytest

from cachegraph.channels.cache.align import AlignedChat, Aligner, TokenizedChat, align_chat
from cachegraph.engine.text.chat import render_chat

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED: dict[str, Any] = json.loads((GOLDEN / "align.json").read_text(encoding="utf-8"))["directions"]
RUNS = [(direction, strategy) for direction in RECORDED for strategy in RECORDED[direction]]

pytestmark = pytest.mark.models


def aligner_of(demo: Any, direction: str, strategy: Any) -> Aligner:
    receiver, sharer = (getattr(demo, name) for name in direction.split("->"))
    return Aligner(receiver, sharer, strategy)


def read_chat(tokenizer: Any, messages: list[dict[str, str]]) -> TokenizedChat:
    def apply(chat: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    chat = render_chat(apply, messages)
    encoded = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    return TokenizedChat(
        encoded["input_ids"], encoded["offset_mapping"], [(span.start, span.end) for span in chat.contents]
    )


def aligned(demo: Any, direction: str, strategy: str, messages: list[dict[str, str]]) -> AlignedChat:
    aligner = aligner_of(demo, direction, strategy)
    return align_chat(aligner, read_chat(aligner.receiver, messages), read_chat(aligner.sharer, messages))


def chats(*, failed: bool) -> list[Any]:
    return [
        pytest.param(direction, strategy, chat, id=f"{direction}-{strategy}-{chat['name']}")
        for direction, strategy in RUNS
        for chat in RECORDED[direction][strategy]["chats"]
        if ("error" in chat) is failed
    ]


@pytest.mark.parametrize(("direction", "strategy"), RUNS)
def test_texts_align_as_recorded(demo_tokenizers: Any, direction: str, strategy: str) -> None:
    aligner = aligner_of(demo_tokenizers, direction, strategy)
    for text in RECORDED[direction][strategy]["texts"]:
        ids = aligner.receiver.encode(text["text"], add_special_tokens=True)
        assert ids == text["slm_ids"]
        assert aligner.tokens(ids) == text["aligned_llm_ids"]
        assert [aligner.candidates(id_) for id_ in ids] == text["candidates"]


@pytest.mark.parametrize(("direction", "strategy", "chat"), chats(failed=False))
def test_chats_align_as_recorded(demo_tokenizers: Any, direction: str, strategy: str, chat: Any) -> None:
    ours, theirs = aligned(demo_tokenizers, direction, strategy, chat["messages"]), chat["result"]
    assert list(ours.receiver_ids) == theirs["slm_ids_padded"]
    assert list(ours.sharer_ids) == theirs["llm_ids_padded"]
    assert list(ours.message_mask) == theirs["message_mask"]
    assert list(ours.receiver_padding) == theirs["slm_padding_mask"]
    assert list(ours.sharer_padding) == theirs["llm_padding_mask"]
    sections = [{"type": kind, "slm_range": [a, b], "llm_range": [a, b]} for kind, a, b in ours.sections]
    assert sections == theirs["sections"]


@pytest.mark.parametrize(("direction", "strategy", "chat"), chats(failed=True))
def test_chats_that_the_reference_fails_on_align(
    demo_tokenizers: Any, direction: str, strategy: str, chat: Any
) -> None:
    ours = aligned(demo_tokenizers, direction, strategy, chat["messages"])
    receiver = getattr(demo_tokenizers, direction.split("->")[0])
    said = receiver.decode([id_ for id_, said in zip(ours.receiver_ids, ours.message_mask, strict=True) if said])
    content = chat["messages"][0]["content"]
    # SmolLM2 reads the template's newline and spaces after it as one token.
    assert said.removeprefix("\n") == (content.strip() if direction.startswith("gemma3") else content)
    assert len(ours.receiver_ids) == len(ours.sharer_ids) == len(ours.message_mask)


def test_words_of_a_default_system_prompt_are_not_taken_for_the_users(demo_tokenizers: Any) -> None:
    """SmolLM2's template speaks of 'Hugging Face' before the user does."""
    messages = [{"role": "user", "content": "Hugging Face"}]
    ours = aligned(demo_tokenizers, "smollm2->gemma3", "first", messages)
    asked = aligned(demo_tokenizers, "smollm2->gemma3", "first", [{"role": "user", "content": "What is this?"}])
    assert ours.sections[0] == asked.sections[0]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "yes"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "yes"}],
        [{"role": "user", "content": "a<end_of_turn>\n<start_of_turn>model\nb<|im_end|>\n<|im_start|>assistant\n"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "user"}],
        [{"role": "user", "content": "日本語のテスト🇫🇷\n\n"}, {"role": "assistant", "content": " 👨‍👩‍👧"}],
        [{"role": "user", "content": ""}],
    ],
)
@pytest.mark.parametrize("direction", list(RECORDED))
def test_native_ids_survive_alignment(demo_tokenizers: Any, direction: str, messages: list[dict[str, str]]) -> None:
    ours = aligned(demo_tokenizers, direction, "longest", messages)
    receiver, sharer = (getattr(demo_tokenizers, name) for name in direction.split("->"))
    mine, theirs = read_chat(receiver, messages), read_chat(sharer, messages)
    kept = [id_ for id_, pad in zip(ours.receiver_ids, ours.receiver_padding, strict=True) if not pad]
    assert kept == list(mine.ids)
    rows = zip(ours.sharer_ids, ours.sharer_padding, ours.message_mask, strict=True)
    template = [id_ for id_, pad, said in rows if not pad and not said]
    others = [id_ for id_, (a, b) in zip(theirs.ids, theirs.offsets, strict=True) if not _inside(theirs, a, b)]
    assert template == others


def _inside(reading: TokenizedChat, start: int, end: int) -> bool:
    return any(start < last and end > first for first, last in reading.contents if first < last)
