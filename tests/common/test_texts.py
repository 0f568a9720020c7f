"""Texts of strangers: half surrogates mended, JSON refused in a sentence, nothing on a screen that it would obey."""

import json
import random

import pytest

from cachegraph.common.json_text import JSONProblem, parse_json
from cachegraph.common.printable import printable, printable_json, printable_line
from cachegraph.common.surrogates import join_halves, mend, mend_json


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("\ud83d\ude00", "😀"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("é😀", "é😀"),
        ("\udce9", "\ufffd"),
    ],
)
def test_halves_that_follow_each_other_are_a_character_and_lone_ones_are_replaced(text: str, mended: str) -> None:
    assert mend(text) == mended
    assert mend_json({text: [text, 1, None]}) == {mended: [mended, 1, None]}


def test_a_stream_may_cut_anywhere_in_a_character() -> None:
    text = "a\ud83d\ude00b\ud83dc\ude00"
    for cut in range(len(text) + 1):
        first, held = join_halves("", text[:cut])
        second, rest = join_halves(held, text[cut:])
        assert first + second + ("\ufffd" if rest else "") == "a😀b\ufffdc\ufffd"


def test_a_half_before_a_line_end_is_not_held_back() -> None:
    assert join_halves("", "a\ud83d\n") == ("a\ufffd\n", "")
    assert join_halves("\ud83d", "\n") == ("\ufffd\n", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 20_000 + "]" * 20_000, "nests deeper than 200 levels"),
        ("[" * 300 + "]" * 300, "deeper than 200"),
        ('{"a":' * 300 + "1" + "}" * 300, "deeper than 200"),
        ("9" * 5000, "5,000 digits"),
        ("-" + "9" * 100_000, "digits"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\x00", "not JSON"),
        ('"\x00"', "not JSON"),
        ("{'a': 1}", "not JSON"),
    ],
)
def test_json_that_can_not_be_used_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(JSONProblem, match=words):
        parse_json(text)


def test_a_byte_order_mark_is_dropped_and_halves_in_json_are_mended() -> None:
    assert parse_json('\ufeff{"a": "\\ud83d"}') == {"a": "\ufffd"}
    with pytest.raises(JSONProblem, match="NaN"):
        parse_json("[NaN]", strict=True)


HOSTILE = [
    *map(chr, [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]),  # C0 but tab and newline, DEL, C1
    *"\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2064\u2066\u2067\u2068\u2069",
    *"\u00ad\u034f\u115f\u1160\u17b4\u180e\u2800\u3164\ufeff\uffa0\ufff9\ufffb\ud83d\ude00\ufdd0\ufffe",
    *"\U000e0001\U000e0041\U000e007f\U000e0100\U0001d173\U000f0000\U0010ffff",
]


@pytest.mark.parametrize("char", HOSTILE, ids=lambda char: f"U+{ord(char):04X}")
def test_what_a_screen_would_obey_or_hide_is_replaced(char: str) -> None:
    assert printable(f"pay{char}pal") == "pay\ufffdpal"
    escaped = printable_json(json.dumps({"a": char}, ensure_ascii=False))
    assert char not in escaped
    assert json.loads(escaped) == {"a": char}


def test_joiners_and_selectors_hide_nothing_between_latin_letters() -> None:
    assert printable("a\u200db a\u200cb a\ufe0fb \u200d") == "a\ufffdb a\ufffdb a\ufffdb \ufffd"
    assert "\u200d" not in printable("😀" + "\u200d" * 3 + "x")
    assert printable("x\ufe0f\ufe0f\ufe0e") == "x\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3 🏳\ufe0f\u200d🌈",
        "می\u200cخواهم",
        "क्\u200dष",
        "bonjour\u00a0! 日本\u3000語 e\u0301",
        "a\tb\nc",
        "ﷺ עברית العربية",
    ],
)
def test_what_writing_systems_need_stays(text: str) -> None:
    assert printable(text) == text


def test_a_line_is_one_line() -> None:
    assert printable_line(" a\r\n b\x1b\u2028c ") == "a b\ufffd c"


def test_printable_json_keeps_the_value_of_any_text() -> None:
    draw = random.Random(5)
    tried = 0
    for _ in range(2000):
        text = "".join(chr(draw.choice([draw.randrange(0x300), draw.randrange(0x110000)])) for _ in range(20))
        if not any(0xD800 <= ord(char) < 0xE000 for char in text):
            shown = printable_json(json.dumps(text, ensure_ascii=False))
            assert json.loads(shown) == text
            assert printable(shown) == shown
            tried += 1
    assert tried > 1000
