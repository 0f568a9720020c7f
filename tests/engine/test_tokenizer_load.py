"""A tokenizer is read the short way only where that gives what transformers gives."""

import os
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, save_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from transformers import AutoTokenizer
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

from cachegraph.engine.text import compact_tokenizer, tokenizer_load
from cachegraph.engine.text.compact_tokenizer import find_copy, write_copy
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


@pytest.mark.parametrize("save", [save_gemma, save_chat])
def test_a_compact_copy_is_the_same_tokenizer_and_a_damaged_one_is_not_read(
    tmp_path: Path, slow: list[Path], monkeypatch: pytest.MonkeyPatch, save: Any
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder)
    read: list[Path] = []
    directly = tokenizer_load._read_directly

    def noted(file: Path, of: Any) -> Any:
        read.append(file)
        return directly(file, of)

    monkeypatch.setattr(tokenizer_load, "_read_directly", noted)
    first, second = (read_raw_tokenizer(folder, remembers=True) for _ in range(2))
    (copy,) = (tmp_path / "home" / "tokenizers").glob("*.compact")
    assert read[-1] == copy
    assert copy.stat().st_size < (folder / "tokenizer.json").stat().st_size
    assert second.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    for damage in (lambda: copy.write_text(copy.read_text().replace("t", "h")), copy.unlink):
        damage()
        third = read_raw_tokenizer(folder, remembers=True)
        assert read[-1] == folder / "tokenizer.json"
        assert third.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert len(slow) == 1


def test_merges_of_pieces_with_spaces_stay_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    vocab = {"a": 0, " ": 1, "a ": 2, "a a": 3, "b": 4, "ab": 5}
    merges = [("a", " "), ("a ", "a"), ("a", "b")]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    copy = find_copy(write_copy(tokenizer))
    assert copy is not None
    assert Tokenizer.from_file(str(copy)).to_str() == tokenizer.to_str()


def test_only_the_newest_copies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    monkeypatch.setattr(compact_tokenizer, "_KEPT", 2)
    digests = []
    for number in range(4):
        digests.append(write_copy(Tokenizer(WordLevel({f"w{number}": 0}, unk_token=f"w{number}"))))
        assert (copy := find_copy(digests[-1])) is not None
        os.utime(copy, (number, number))
    assert [find_copy(each) is not None for each in digests] == [False, False, True, True]


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
