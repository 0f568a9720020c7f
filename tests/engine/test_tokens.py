"""Replies as text while they grow: whole characters, and never a stop string."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config_of, load_tiny, save_tokenizer
from tokenizers import decoders
from transformers import AutoTokenizer

from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.tokenizer import TextDecoder, Tokenizer
from cachegraph.errors import ModelError

TEXTS = [
    "the sky 🙂 is blue",
    "中文的字，和 日本語。",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "naïve – café",
    "  two  spaces\n\n\tand tabs ",
    "",
    "🙂",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Tokenizer(AutoTokenizer.from_pretrained(folder))


def pieces_of(tokenizer: Tokenizer, text: str, *stop: str) -> tuple[list[str], TextDecoder]:
    decoder = TextDecoder(tokenizer.decode, stop)
    pieces = []
    for token in tokenizer.encode(text, special=False).ids:
        pieces.append(decoder.push(token))
        if decoder.stopped:
            break
    return [*pieces, decoder.finish()], decoder


@settings(deadline=None)
@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text_and_hold_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    """Of characters outside ASCII most tokens are but one byte."""
    text = text.replace("\ufffd", "")
    pieces, decoder = pieces_of(tokenizer, text)
    assert "".join(pieces) == decoder.text == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text("空🙂é", max_size=20))
def test_long_runs_of_single_bytes_stay_whole(text: str) -> None:
    """Where a byte of a broken character spoils its neighbours, as in tokenizers that fall back to bytes."""
    fallback = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    decoder = TextDecoder(lambda ids: fallback.decode([f"<0x{each:02X}>" for each in ids]))
    assert "".join(decoder.push(each) for each in text.encode()) == decoder.text == text


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_real_tokenizers_stream_what_they_decode(demo_engines: dict[str, Engine], name: str) -> None:
    tokenizer = demo_engines[name].model.tokenizer
    assert tokenizer is not None
    for text in [*TEXTS, " ".join(TEXTS) * 3]:
        pieces, decoder = pieces_of(tokenizer, text)
        assert "".join(pieces) == decoder.text == tokenizer.decode(tokenizer.encode(text, special=False).ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_cut_off_at_the_end_is_shown_as_broken(tokenizer: Tokenizer) -> None:
    decoder = TextDecoder(tokenizer.decode)
    ids = tokenizer.encode("a🙂", special=False).ids
    given_out = "".join(decoder.push(token) for token in ids[:-1]) + decoder.finish()
    assert given_out == decoder.text
    assert given_out.startswith("a\ufffd")


@settings(deadline=None)
@given(st.text("ab 🙂", max_size=30), st.lists(st.text("ab 🙂", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_end_the_text_and_are_never_given_out(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    """The reply is cut before the stop string that is complete first; nothing of one is handed out before."""
    pieces, decoder = pieces_of(tokenizer, text, *stop)
    ends = [text.find(each) for each in stop if each in text]
    assert "".join(pieces) == decoder.text
    assert decoder.stopped == bool(ends)
    if not ends:
        assert decoder.text == text
    else:
        assert text.startswith(decoder.text)
        assert not any(each in decoder.text for each in stop)
    for count in range(len(pieces)):
        assert decoder.text.startswith("".join(pieces[:count]))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(folder)
    engine = Engine(load_tiny(config_of("llama"), folder))
    yield engine
    engine.close()


def generate(engine: Engine, prompt: str, on_text: Callable[[str], None] | None = None, **values: Any) -> Any:
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(prompt, special=False).ids
    return anyio.run(lambda: engine.generate(ids, spec=GenerateSpec(**values), on_text=on_text))


def test_an_engines_reply_stops_at_a_stop_string(engine: Engine) -> None:
    """Two characters of what the model says anyway, from two tokens, make the stop string."""
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    strange = frozenset(id_ for id_ in range(300) if not tokenizer.decode([id_]).isalnum())
    plain = Engine(replace(engine.model, info=replace(engine.model.info, eos_ids=strange)))  # which are never said
    sampled: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0, "seed": 2, "ignore_eos": True}
    free = generate(plain, "the sky", **sampled)
    at = next(i for i in range(4, 30) if free.text[i : i + 2] not in free.text[: i + 1])
    given_out: list[str] = []
    reply = generate(plain, "the sky", given_out.append, stop=(free.text[at : at + 2],), **sampled)
    plain.close()
    assert reply.finish == "stop"
    assert reply.text == "".join(given_out) == free.text[:at]
    assert list(reply.ids) == list(free.ids[: len(reply.ids)])
    assert len(reply.ids) < len(free.ids)


def test_an_engine_streams_the_text_it_returns(engine: Engine) -> None:
    pieces: list[str] = []
    reply = generate(engine, "the sky", pieces.append, max_new_tokens=30, temperature=1.5, seed=1)
    assert "".join(pieces) == reply.text
    assert reply.finish == "length"
    assert len(reply.ids) == 30


def test_bounds_on_the_length_hold(engine: Engine) -> None:
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    everything = frozenset(range(100, 300))  # most tokens end the reply
    ends = Engine(replace(engine.model, info=replace(engine.model.info, eos_ids=everything)))
    sampled: dict[str, Any] = {"max_new_tokens": 9, "temperature": 1.0, "seed": 0}
    short = generate(ends, "the sky", **sampled)
    longer = generate(ends, "the sky", min_new_tokens=5, **sampled)
    full = generate(ends, "the sky", ignore_eos=True, **sampled)
    ends.close()
    assert (short.finish, longer.finish, full.finish) == ("eos", "eos", "length")
    assert len(short.ids) < 5 <= len(longer.ids) < len(full.ids) == 9
    assert not everything & {*short.ids, *longer.ids, *full.ids}


def test_nothing_is_generated_where_nothing_may_be(engine: Engine) -> None:
    reply = generate(engine, "the sky", max_new_tokens=0)
    assert (list(reply.ids), reply.text, reply.finish) == ([], "", "length")


def test_offsets_are_the_characters_of_the_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids, offsets = tokenizer.encode(text, special=False)
        assert len(ids) == len(offsets)
        covered = {at for start, end in offsets for at in range(start, end)}
        assert covered == set(range(len(text)))


def test_a_template_that_refuses_its_messages_is_named_as_such(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, template="{{ raise_exception('no system message') }}")
    tokenizer = Tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    with pytest.raises(ModelError, match="chat template refuses these messages: no system message"):
        tokenizer.chat([{"role": "user", "content": "hi"}])


def test_a_template_given_beside_the_model_wins(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, template=None)
    raw = AutoTokenizer.from_pretrained(tmp_path)
    assert not Tokenizer(raw).has_chat
    chat = Tokenizer(raw, "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert chat.has_chat
    assert chat.chat([{"role": "user", "content": "hi"}]) == "[hi]"
