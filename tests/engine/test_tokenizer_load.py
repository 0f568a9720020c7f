"""A tokenizer is read the short way only where that gives what transformers gives."""

from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, save_tokenizer
from transformers import AutoTokenizer
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

from cachegraph.engine.text import tokenizer_load
from cachegraph.engine.text.tokenizer_load import read_raw_tokenizer

TEXT = "  the sky <|im_end|>\n is blue 🙂"


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with every tokenizer that transformers reads; every file is large enough to be remembered."""
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tokenizer_load, "_LARGE", 0)
    made: list[Path] = []

    def counted(folder: Path) -> Any:
        made.append(folder)
        return AutoTokenizer.from_pretrained(folder)

    monkeypatch.setattr(tokenizer_load, "_read_slowly", counted)
    return made


def save_gemma(folder: Path) -> None:
    pieces = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "t",
        "h",
        "th",
    ]
    tokenizer = GemmaTokenizer(vocab={piece: id_ for id_, piece in enumerate(pieces)}, merges=[("t", "h")])
    tokenizer.save_pretrained(folder)


def save_chat(folder: Path) -> None:
    save_tokenizer(folder, template=CHATML, special=["<s>"])


@pytest.mark.parametrize("save", [save_gemma, save_chat])
def test_what_is_read_the_short_way_is_what_transformers_reads(tmp_path: Path, slow: list[Path], save: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder)
    first, second = (read_raw_tokenizer(folder, remembers=True) for _ in range(2))
    assert len(slow) == 1
    for special in (False, True):
        ours, theirs = (each(TEXT, add_special_tokens=special, return_offsets_mapping=True) for each in (second, first))
        assert ours["input_ids"] == theirs["input_ids"]
        assert ours["offset_mapping"] == theirs["offset_mapping"]
    assert second.decode(first(TEXT)["input_ids"], skip_special_tokens=True) == first.decode(
        first(TEXT)["input_ids"], skip_special_tokens=True
    )
    assert second.all_special_ids == first.all_special_ids
    assert (second.eos_token_id, second.unk_token_id) == (first.eos_token_id, first.unk_token_id)
    if first.chat_template:
        messages = [{"role": "user", "content": "Hi"}]
        assert second.apply_chat_template(messages, tokenize=False) == first.apply_chat_template(
            messages, tokenize=False
        )


def test_a_tokenizer_of_which_transformers_makes_something_else_is_left_to_it(
    tmp_path: Path, slow: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_chat(tmp_path)
    monkeypatch.setattr(tokenizer_load, "_alike", lambda *_: False)
    for count in (1, 2, 3):
        read_raw_tokenizer(tmp_path, remembers=True)
        assert len(slow) == count


def test_a_changed_file_and_a_damaged_memory_are_read_by_transformers_again(tmp_path: Path, slow: list[Path]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_chat(folder)
    read_raw_tokenizer(folder, remembers=True)
    (folder / "chat_template.jinja").write_text("other")
    assert read_raw_tokenizer(folder, remembers=True).chat_template == "other"
    assert len(slow) == 2
    for content in ("", "{}", "[]"):
        for kept in (tmp_path / "home" / "tokenizers").iterdir():
            kept.write_text(content)
        assert read_raw_tokenizer(folder, remembers=True).chat_template == "other"
    assert len(slow) == 5


def test_without_a_memory_transformers_reads_it(tmp_path: Path, slow: list[Path]) -> None:
    save_chat(tmp_path)
    for _ in range(2):
        read_raw_tokenizer(tmp_path, remembers=False)
    assert len(slow) == 2
