"""Chat templates: the text that transformers makes, and an end to whatever takes too long or too much."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cachegraph.engine.text.chat_template import render_chat_template

# In the styles of models that people run, written for these tests.
ALL = {file.stem: file.read_text() for file in (Path(__file__).parent / "chat_templates").glob("*.jinja")}

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <b> & 'c' é.",
        "parameters": {
            "type": "object",
            "properties": {
                "b": {"type": "array", "items": {"type": "number"}},
                "a": {"type": ["string", "boolean"]},
                "c": {"type": "odd"},
            },
            "required": ["a"],
        },
    },
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi there"}],
    [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "a < b & 'c' 😀\n"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
        {"role": "user", "content": " 2 "},
    ],
    [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": " hi "}, {"type": "image"}]}],
]
OTHERS = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}


def _ours(template: str, chat: list[dict[str, Any]], tools: Any, reply: bool) -> str:
    return render_chat_template(template, chat, tools=tools, add_generation_prompt=reply, **OTHERS)


def _theirs(template: str, chat: list[dict[str, Any]], tools: Any, reply: bool) -> str:
    texts, _ = render_jinja_template([chat], tools=tools, chat_template=template, add_generation_prompt=reply, **OTHERS)
    return str(texts[0])


def _outcome(render: Any, *arguments: Any) -> str:
    try:
        return str(render(*arguments))
    except Exception as error:
        return f"refused: {type(error).__name__}"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]], ids=["no tools", "a tool", "tools"])
def test_the_text_is_the_one_that_transformers_makes(name: str, tools: Any) -> None:
    rendered = 0
    for chat in CHATS:
        for reply in (True, False):
            ours, theirs = (_outcome(render, ALL[name], chat, tools, reply) for render in (_ours, _theirs))
            assert ours == theirs
            rendered += not ours.startswith("refused")
    assert rendered >= 2


def test_the_exception_of_a_template_says_what_it_said() -> None:
    with pytest.raises(TemplateError, match="System role not supported"):
        _ours(ALL["gemma"], CHATS[1], None, True)


DOUBLE = "{% set l = ['x'] %}" + "{% set l = [l, l] %}" * 40
LONG = "{% set s = 'a' * 100000 %}{% set s = s * 100 %}"
BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "repeat": "{{ ('a' * 3000000000)|length }}",
    "repeat from the right": "{{ (3000000000 * 'a')|length }}",
    "repeat a list": "{{ ([1] * 3000000000)|length }}",
    "repeat in steps": LONG + "{{ (s * 1000)|length }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "percent by a star": "{{ '%*d' % (2000000000, 1) }}",
    "percent precision": "{{ '%.2000000000f' % 1.0 }}",
    "percent by name": LONG + "{{ ('%(a)s' * 1000) % {'a': s} }}",
    "even": "{{ '%2000000000d' is even }}",
    "odd": "{{ '%2000000000d😀' is odd }}",
    "divisible": "{{ '%2000000000d' is divisibleby 2 }}",
    "select even": "{{ ['%2000000000d']|select('even')|list }}",
    "format filter": "{{ '%2000000000d'|format(1) }}",
    "format method": "{{ '{:2000000000d}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 2000000000) }}",
    "center": "{{ 'a'|center(2000000000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "zfill": "{{ 'a'.zfill(2000000000) }}",
    "expandtabs": "{{ ('\\t' * 100000).expandtabs(100000) }}",
    "replace": LONG + "{{ s.replace('a', s)|length }}",
    "replace filter": LONG + "{{ s|replace('a', s)|length }}",
    "replace nothing": LONG + "{{ s.replace('', s)|length }}",
    "join": LONG + "{{ range(99999)|join(s)|length }}",
    "join method": LONG + "{{ s.join(['a'] * 99999)|length }}",
    "indent": "{{ ('\\n' * 100000)|indent(100000) }}",
    "indent by text": LONG + "{{ ('\\n' * 100000)|indent(s) }}",
    "json indent": "{{ range(99999)|list|tojson(indent=2000000000) }}",
    "json indent deep": "{% set l = range(99999)|list %}" + "{% set l = [l] %}" * 500 + "{{ l|tojson(indent=90) }}",
    "json separators": LONG + "{{ range(9999)|list|tojson(separators=(s, s)) }}",
    "doubling": DOUBLE + "{{ l }}",
    "doubling to json": DOUBLE + "{{ l|tojson }}",
    "doubling to text": DOUBLE + "{{ l|string|length }}",
    "doubling compared": DOUBLE + DOUBLE.replace(" l ", " m ").replace("[l, l]", "[m, m]") + "{{ l == m }}",
    "doubling in": DOUBLE + "{{ [1] in l }}",
    "doubling sorted": DOUBLE + "{{ [l, l]|sort }}",
    "doubling hashed": DOUBLE.replace("['x']", "(1,)").replace("[l, l]", "(l, l)") + "{{ {l: 1}|length }}",
    "doubling looked up": DOUBLE.replace("['x']", "(1,)").replace("[l, l]", "(l, l)") + "{{ {}.get(l) }}",
    "doubling joined": DOUBLE + "{{ l|join(',') }}",
    "doubling concatenated": DOUBLE + "{{ l ~ '' }}",
    "doubling formatted": DOUBLE + "{{ '%s' % (l,) }}",
    "doubling by plus": "{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}",
    "doubling text": "{% set ns = namespace(l='a') %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "doubling block": "{% set n = namespace(l='a') %}{% for i in range(99) %}{% set b %}{{ n.l }}{{ n.l }}{% endset %}"
    "{% set n.l = b %}{% endfor %}",
    "literal": "{% macro f() %}{% for i in range(99999) %}"
    + "x" * 19_000
    + "{% endfor %}{% endmacro %}{{ f()|length }}",
    "macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "two macros": "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "recursive ranges": "{% for i in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 9 }}{% endfor %}",
    "power": "{{ 10 ** 2000000000 }}",
    "powers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "round": "{{ 1.5|round(2000000000, 'ceil') }}",
    "batch": "{{ [1]|batch(2000000000, 'x')|list|length }}",
    "slice": "{{ [1]|slice(2000000000)|list|length }}",
    "sum of lists": "{{ [[1]]|sum(start=[]) }}",
    "split": LONG + "{{ s.split('a')|length }}",
    "lines": "{{ ('\\n' * 100000 * 9).splitlines()|length }}",
    "sort": LONG + "{% set l = [s] * 9999 %}{{ l|sort|length }}",
    "unique": LONG + "{% set l = [s] * 9999 %}{{ l|unique|list|length }}",
    "upper": LONG + "{% for i in range(99999) %}{{ s|upper|length }}{% endfor %}",
    "contains": LONG + "{% set t = s ~ 'b' %}{% for i in range(99999) %}{{ t in s }}{% endfor %}",
    "compare": LONG + "{% set t = s ~ '' %}{% for i in range(99999) %}{{ t == s }}{% endfor %}",
    "changed": LONG + "{% for i in range(99999) %}{{ loop.changed(s ~ '') }}{% endfor %}",
    "namespace of": "{{ namespace(range(99999)|list) }}",
    "cycle": "{% set c = cycler('a' * 100000) %}{% for i in range(99999) %}{{ c.next() }}{% endfor %}",
    "time": "{{ strftime_now('%99999999d' * 100000) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "classes by attr": "{{ ''|attr('__class__') }}",
    "classes by item": "{{ ''['__class__'] }}{{ ''['__class__']['__mro__'] }}",
    "format attributes": "{{ '{0.__class__}'.format(1) }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "change messages": "{{ messages.append(1) }}",
    "change a message": "{{ messages[0].update(role='system') }}",
    "call a text": "{{ 'a'() }}",
    "underscores in a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "deep code": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "long code": "{{ 1 }}" * 20_000,
    "long sum": "{{ " + "1 + " * 6000 + "1 }}",
    "huge literal": "{{ " + "9" * 6000 + " }}",
    "huge template": "x" * 2_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_takes_too_much_is_refused_early(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.thread_time()
    with pytest.raises((TemplateError, TypeError, ValueError, AttributeError)):
        render_chat_template(BOMBS[name], CHATS[0])
    assert time.thread_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


def test_a_conversation_of_thousands_of_messages_is_within_the_budget() -> None:
    chat = [{"role": ("user", "assistant")[turn % 2], "content": "word " * 20} for turn in range(2001)]
    for name in ("chatml", "llama3", "qwen3", "gemma", "mistral"):
        assert _ours(ALL[name], chat, None, True) == _theirs(ALL[name], chat, None, True)


def test_a_message_of_megabytes_is_within_the_budget() -> None:
    chat = [{"role": "user", "content": "word " * 1_000_000}]
    for name in ("chatml", "llama3", "qwen3", "gemma", "mistral"):
        assert _ours(ALL[name], chat, [TOOL], True) == _theirs(ALL[name], chat, [TOOL], True)
