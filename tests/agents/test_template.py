import pickle
import resource
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.agents.prompt.filters import Value
from cachegraph.agents.prompt.parse_template import MARK, TemplateProblem
from cachegraph.agents.prompt.sandbox import SANDBOX
from cachegraph.agents.prompt.template import Rendered, Span, compile_template

TEXTS = st.text(max_size=20)


def render(source: str, slots: tuple[str, ...] = (), **values: str) -> str:
    return compile_template(source).render(values, slots).text


def pieces(rendered: Rendered) -> list[tuple[str, str, str | None]]:
    return [(rendered.text[span.start : span.end], span.kind, span.origin) for span in rendered.spans]


def assert_covers(rendered: Rendered) -> None:
    at = 0
    for span in rendered.spans:
        assert span.start == at
        assert (span.kind in ("template", "made")) == (span.origin is None)
        at = span.end
    assert at == len(rendered.text)


def test_spans_tell_template_from_values() -> None:
    rendered = compile_template("Q: {{ question }}\nA:").render({"question": "why?"})
    assert pieces(rendered) == [("Q: ", "template", None), ("why?", "value", "question"), ("\nA:", "template", None)]


def test_a_slot_is_an_empty_span_at_its_place() -> None:
    rendered = compile_template("{{ expert }}\n{{ question }}").render({"question": "why?"}, {"expert"})
    assert rendered.text == "\nwhy?"
    assert rendered.spans[0] == Span(0, 0, "expert", "slot")


@pytest.mark.parametrize(
    "code", ["{{ expert|trim }}", "{{ 'a' ~ expert }}", "{{ expert|upper }}", "{{ expert.strip() }}"]
)
def test_a_slot_survives_what_is_done_to_it(code: str) -> None:
    rendered = compile_template(code).render({}, {"expert"})
    assert [span.origin for span in rendered.spans if span.kind == "slot"] == ["expert"]
    assert MARK not in rendered.text
    assert_covers(rendered)


def test_a_slot_is_true_and_an_empty_reply_is_false() -> None:
    template = compile_template("{% if expert %}said: {{ expert }}{% else %}nothing{% endif %}")
    assert template.render({}, {"expert"}).text == "said: "
    assert template.render({"expert": ""}).text == "nothing"
    assert template.render({"expert": "x"}).text == "said: x"


def test_a_trimmed_value_keeps_its_origin_and_a_changed_one_does_not() -> None:
    rendered = compile_template("{{ a|trim }}{{ a.strip() }}{{ a|upper }}").render({"a": " x "})
    assert pieces(rendered) == [("x", "value", "a"), ("x", "value", "a"), (" X ", "made", None)]


def test_what_expressions_put_out_is_not_the_templates_own_words() -> None:
    source = "own {{ 'said' }}{{ n }}{{ d.x }}{{ a[:1] }}{{ 'a' ~ s }}{% if n %} own{% endif %}"
    rendered = compile_template(source, None).render({"n": 3, "d": {"x": "in"}, "a": "part", "s": ""}, {"s"})
    assert pieces(rendered) == [
        ("own ", "template", None),
        ("said3inpa", "made", None),
        ("", "slot", "s"),
        (" own", "template", None),
    ]


def test_values_keep_their_origin_through_loops_conditions_and_names() -> None:
    source = "{% for x in [a, b] %}{{ x }},{% endfor %}{% set c = a if b else '' %}{{ c }}"
    rendered = compile_template(source).render({"a": "1", "b": "2"})
    assert [origin for _, kind, origin in pieces(rendered) if kind == "value"] == ["a", "b", "a"]


def test_one_slot_may_stand_at_several_places() -> None:
    rendered = compile_template("{{ a }}-{{ b }}-{{ a }}").render({}, {"a", "b"})
    assert [span.origin for span in rendered.spans if span.kind == "slot"] == ["a", "b", "a"]


@given(TEXTS, TEXTS, st.booleans())
def test_spans_cover_the_text_whatever_the_values(a: str, b: str, slot: bool) -> None:
    template = compile_template("x{{ a }}{{ b }}{% if a %}!{% endif %}{{ b|trim }}{{ a ~ b }}\n")
    rendered = template.render({"a": a, "b": b}, {"a"} if slot else ())
    assert_covers(rendered)
    assert ("slot" in {span.kind for span in rendered.spans}) == slot


@given(TEXTS)
def test_values_are_never_read_as_templates_or_slots(text: str) -> None:
    wild = f"{text}{{{{ b }}}}{{% for %}}{MARK}\U000f0000"
    rendered = compile_template("{{ a }}").render({"a": wild}, {"b"})
    assert rendered.text == wild.replace(MARK, "\ufffd")
    assert rendered.spans == (Span(0, len(wild), "a", "value"),)


def test_text_without_code_is_taken_as_it_is_but_for_one_last_newline() -> None:
    assert render("a } b\n") == "a } b"
    assert render("a\r\nb\n\n") == "a\nb\n"
    assert render("{{ x }}\r\nb\n\n", x="a") == "a\nb\n"


def test_a_statement_on_a_line_of_its_own_leaves_no_line() -> None:
    assert render("a\n  {% if x %}\nb\n  {% endif %}\nc", x="1") == "a\nb\nc"


def test_names_are_what_the_caller_must_give() -> None:
    source = "{% set y = q %}{% for i in range(3) %}{{ i }}{{ loop.index }}{{ y }}{% endfor %}{{ expert|default('') }}"
    assert compile_template(source).names == {"q", "expert"}
    assert compile_template("a\n  {{ one }}{{ two }}").place("two") == (2, 15)


@pytest.mark.parametrize(
    ("source", "place", "says"),
    [
        ("a\n {{ x }", (2, 7), "unexpected '}'; a value ends with '}}'"),
        ("{{ x", (1, 1), "expected '}}'"),
        ("{{ x | }}", (1, 8), "got '}}'"),
        ("{% for %}", (1, 8), "got '%}'"),
        ("{% if x %}", (1, 1), "'{% if %}' is never closed; add '{% endif %}'"),
        ("{% foo %}", (1, 4), "unknown tag 'foo'"),
        ("{{ x | uper }}", (1, 8), "unknown filter 'uper'"),
        ("{{ x is gone }}", (1, 9), "unknown test 'gone'"),
        ("{% include 'x' %}", (1, 4), "can't hold 'include'"),
        ("{% import 'x' as y %}", (1, 4), "can't hold 'import'"),
        ("{% from 'x' import y %}", (1, 4), "can't hold 'from'"),
        ("{% extends 'x' %}", (1, 4), "can't hold 'extends'"),
        ("{% macro f() %}{% endmacro %}", (1, 4), "can't hold 'macro'"),
        ("{% block b %}{% endblock %}", (1, 4), "can't hold 'block'"),
        ("{{ x.__class__ }}", (1, 6), "unknown attribute '__class__'"),
        ("{{ x.format(1) }}", (1, 6), "unknown attribute 'format'"),
        ("{{ lipsum() }}", (1, 4), "only range()"),
        ("{{ x(*y) }}", (1, 4), "only range()"),
        ("{% for a in x recursive %}{% endfor %}", (1, 15), "recursive"),
        (f"a{MARK}", (1, 2), "U+FDD0"),
        ("{{ '\\ufdd0' }}", (1, 1), "U+FDD0"),
    ],
)
def test_what_a_prompt_may_not_hold_is_refused_with_its_place(source: str, place: tuple[int, int], says: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        compile_template(source)
    assert says in caught.value.message
    assert (caught.value.line, caught.value.column) == place


@pytest.mark.parametrize(
    "source",
    [
        "{{ x['__class__'] }}",
        "{{ x[0].__class__ }}",
        "{{ ''.join.__self__ }}",
        "{{ x|attr('__class__') }}",
        "{{ x.upper.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ '%s' % x }}",
        "{% for a in x.upper %}{% endfor %}",
        "{{ range.__class__ }}",
        "{{ loop.__init__ }}",
        "{{ cycler('a') }}",
        "{{ namespace(a=1) }}",
        "{{ x|map(attribute='__class__')|first }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(TemplateProblem):
        render(source, x="abc")


BIG = "abc\n" * 2_500_000
BOMBS = {
    "empty nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(99999) if false %}{% endfor %}" * 3,
    "long range": "{{ range(10**12) }}",
    "repetition": "{{ 'a' * 10**9 }}",
    "repetition step by step": "{% set s = 'a' * 99999 %}" + "{% set s = s * 99999 %}" * 4,
    "power": "{{ 9**9**9 }}",
    "power step by step": "{% set n = 2**60 %}" + "{% set n = n * n %}" * 40 + "{{ n }}",
    "doubling": "{% set s = big %}" + "{% set s = s ~ s %}" * 40,
    "doubling lists": "{% set s = [] %}" + "{% set s = [s, s] %}" * 60 + "{{ s }}",
    "output": "{% for i in range(9999) %}{{ big }}{% endfor %}",
    "work without output": "{% for i in range(9999) %}{% if big|upper == 'x' %}{% endif %}{% endfor %}",
    "comparisons": "{% for i in range(99999) %}{% if big == other %}{% endif %}{% endfor %}",
    "slices": "{% for i in range(99999) %}{% if big[1:] %}{% endif %}{% endfor %}",
    "replace": "{{ big|replace('', big) }}",
    "indent": "{{ big|indent(100000) }}",
    "characters": "{% for c in big %}{% endfor %}",
    "parts": "{% for c in big.split('a') %}{% endfor %}",
    "format": "{{ '%1000000000d' % 1 }}",
    "deep code": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long code": "{{ 1" + " + 1" * 100_000 + " }}",
    "many tags": "{{ big }}" * 300_000,
    "deep loops": "{% for a in big %}" * 60 + "{% endfor %}" * 60,
    "long number": "{{ " + "9" * 1_000_000 + " }}",
    "long name": "{{ " + "a" * 1_000_000 + " }}",
    "rounding": "{{ 1.5|round(10**9) }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_would_not_end_ends_in_an_error(name: str) -> None:
    start = time.process_time()
    with pytest.raises(TemplateProblem):
        render(BOMBS[name], big=BIG, other=BIG + "")
    assert time.process_time() - start < 5  # measured: below 1 s


def test_long_values_render_at_once() -> None:
    start = time.process_time()
    rendered = compile_template("a {{ big }} b {{ big }}").render({"big": BIG})
    assert len(rendered.text) == 2 * len(BIG) + 5
    assert time.process_time() - start < 2  # measured: 0.05 s


def test_errors_while_rendering_name_their_line() -> None:
    with pytest.raises(TemplateProblem) as caught:
        render("a\nb\n{{ 1 / zero|int }}", zero="0")
    assert caught.value.line == 3


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(TemplateProblem, match="'y' is undefined"):
        render("{{ y }}")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x.split(',')|join('; ') }}", "b; a; c"),
        (
            "{% for p in x.split(',')|sort %}{{ loop.index }}.{{ p }}{% if not loop.last %} {% endif %}{% endfor %}",
            "1.a 2.b 3.c",
        ),
        ("{{ x|replace(',', '') }}{{ x|length }}{{ x[0] }}{{ x[2:] }}", "bac5ba,c"),
        ("{{ x|truncate(4, true) }}{{ x|upper }}{{ x|title }}", "b,a,cB,A,CB,A,C"),
        ("{{ '7'|int + 1 }} {{ 7 // 2 }} {{ 1.25|round(1) }} {{ -3|abs }}", "8 3 1.2 3"),
        ("{{ x|tojson }}{{ ['a', 'é']|tojson }}", '"b,a,c"["a", "é"]'),
        ("{{ 'yes' if x is defined and 'a' in x else 'no' }}", "yes"),
        ("{% with y = x %}{{ y }}{% endwith %}{% raw %}{{ x }}{% endraw %}", "b,a,c{{ x }}"),
        ("{{ ''|default('none', true) }}{{ 'q\nr'|indent(2) }}", "noneq\n  r"),
        ("{{ x.startswith('b') }}{{ 2 is even }}{{ 1 < 2 < 3 }}", "TrueTrueTrue"),
    ],
)
def test_ordinary_templates_do_what_jinja_does(source: str, text: str) -> None:
    assert render(source, x="b,a,c") == text


LONG = "{% set s = 'a' * 100000 %}{% set s = s * 100 %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%2000000000d' is even }}",
        "{{ '%2000000000d😀' is odd }}",
        "{{ '%2000000000d' is divisibleby 2 }}",
        "{{ 2 is divisibleby '%2000000000d' }}",
        "{{ '%2000000000d' % 1 }}",
        LONG + "{{ [" + ",".join(["s"] * 600) + "]|sort|first|length }}",
        LONG + "{% set t = s ~ 'b' %}{{ [" + ",".join(["s", "t"] * 600) + "]|unique|length }}",
        LONG + "{% set t = s ~ 'b' %}{% for i in range(99999) %}{{ t in [" + ",".join(["s"] * 300) + "] }}{% endfor %}",
        LONG + "{% set t = s ~ '' %}{% for i in range(99999) %}{{ [t] == [s] }}{% endfor %}",
        LONG + "{% for i in range(99999) %}{{ loop.changed(s ~ '') }}{% endfor %}",
        LONG + "{% for i in range(99999) %}{{ s.strip('b' * 99999)|length }}{% endfor %}",
        LONG + "{% for i in range(99999) %}{{ s|trim('b')|length }}{% endfor %}",
        LONG + "{% for i in range(99999) %}{{ s.count('b') }}{% endfor %}",
    ],
)
def test_what_works_before_it_pays_is_no_more(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.thread_time()
    with pytest.raises(TemplateProblem):
        compile_template(source, None).render({})
    assert time.thread_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_a_template_is_parsed_once_for_its_check_and_its_reads_and_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    for name in ("parse", "compile"):

        def noted(*args: Any, name: str = name, whole: Any = getattr(SANDBOX, name), **options: Any) -> Any:
            done.append(name)
            return whole(*args, **options)

        monkeypatch.setattr(SANDBOX, name, noted)
    source = "{{ asked_but_once.data.kind }}: {{ asked_but_once }}"
    checked, again = compile_template(source, {"asked_but_once"}), compile_template(source, None)
    assert checked is again
    assert (again.names, done) == (frozenset({"asked_but_once"}), ["parse"])
    for _ in range(2):
        again.render({"asked_but_once": Value("text", "asked_but_once", {"kind": "bug"})})
    assert done == ["parse", "parse", "compile"], "the guards are put into a tree of their own"
    with pytest.raises(TemplateProblem, match="unknown attribute 'kind'"):
        compile_template("{{ asked_but_once.kind }}", ())
    assert compile_template("{{ asked_but_once.kind }}", None).names == {"asked_but_once"}
    with pytest.raises(TemplateProblem, match="unknown attribute 'kind'"):
        compile_template("{{ asked_but_once.kind }}", ())


def test_a_value_keeps_its_origin_and_data_in_another_process() -> None:
    value = pickle.loads(pickle.dumps(Value("hello", "greeter", {"kind": "greeting"})))
    assert (type(value), value, value.origin, value.data) == (Value, "hello", "greeter", {"kind": "greeting"})
