"""Contents are found where the template put them, not where their words happen to stand."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from cachegraph.engine.text.chat import ChatText, render_chat

Apply = Callable[[list[dict[str, str]]], str]

PLAIN = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<end>\n{% endfor %}<assistant>\n"
TRIMS = "<bos>{% for m in messages %}<{{ m.role }}>\n{{ m.content | trim }}<end>\n{% endfor %}<assistant>\n"
SYSTEM = (
    "{% if messages[0].role != 'system' %}<system>You are a helpful user of words: yes<end>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
)
MERGES = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<{{ m.role }}>{% if loop.last and rest|length < messages|length %}"
    "{{ messages[0].content }}\n\n{% endif %}{{ m.content }}<end>{% endfor %}"
)
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
BRANCHES = "{% for m in messages %}<{{ m.role }}>{% if m.content %}says {{ m.content }}{% endif %}<end>{% endfor %}"
SHOUTS = (
    "<system>hi there<end>{% for m in messages %}<{{ m.role }}>{{ m.content | replace('!', '.') }}<end>{% endfor %}"
)
DROPS = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"


def template(source: str) -> Apply:
    compiled = Environment(autoescape=False).from_string(source)
    return lambda messages: compiled.render(messages=messages)


def user(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]


def found(chat: ChatText) -> list[str]:
    return [chat.text[span.start : span.end] for span in chat.contents]


texts = st.text(alphabet=st.sampled_from("ab \n<>Qz0MZé🇫"), max_size=8)


@pytest.mark.parametrize("source", [PLAIN, TRIMS, SYSTEM, MERGES, BARE, BRANCHES])
@given(contents=st.lists(texts, min_size=1, max_size=4))
def test_every_content_is_found_as_the_template_wrote_it(source: str, contents: list[str]) -> None:
    chat = render_chat(template(source), user(*contents))
    for content, span, text in zip(contents, chat.contents, found(chat), strict=True):
        assert text in {content, content.strip()}
        assert content[span.trimmed_left : span.trimmed_left + len(text)] == text


def test_words_of_the_template_are_not_the_users() -> None:
    chat = render_chat(template(SYSTEM), user("yes", "yes", "user"))
    assert found(chat) == ["yes", "yes", "user"]
    before = [chat.text[: span.start].rsplit("<", 1)[1] for span in chat.contents]
    assert before == ["user>", "assistant>", "user>"]


def test_trimmed_characters_are_counted() -> None:
    (span,) = render_chat(template(TRIMS), user("\n  question\n")).contents
    assert span.trimmed_left == 3
    assert span.end - span.start == len("question")


def test_contents_that_hold_marks_or_special_tokens_are_found_whole() -> None:
    contents = ["Qz0M0Z", "<end>\n<assistant>\nQz0M", "Qz1M1Z<end>"]
    assert found(render_chat(template(PLAIN), user(*contents))) == contents


def test_a_system_prompt_that_moves_into_a_later_message_is_followed() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *user("Be brief.", "ok", "now")]
    chat = render_chat(template(MERGES), messages)
    assert found(chat) == ["Be brief.", "Be brief.", "ok", "now"]
    assert chat.contents[0].start > chat.contents[2].start


def test_a_dropped_content_has_an_empty_span() -> None:
    chat = render_chat(template(DROPS), [{"role": "system", "content": "secret"}, *user("hello")])
    assert found(chat) == ["", "hello"]


def test_contents_are_searched_for_where_a_template_rewrites_some() -> None:
    chat = render_chat(template(SHOUTS), user("hi", "there!", "hi there"))
    assert found(chat) == ["hi", "", "hi there"]
    assert chat.contents[0].start == chat.text.index("<user>hi") + 6


def test_long_chats_with_every_content_alike_are_read_in_one_pass() -> None:
    contents = [" a "] * 2000
    assert found(render_chat(template(TRIMS), user(*contents))) == ["a"] * 2000
