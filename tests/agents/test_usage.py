"""What a template does with a name decides whether a slot with positions in it will do."""

import pytest

from cachegraph.agents.prompt.prompt_reads import prompt_reads
from cachegraph.agents.prompt.template import compile_template
from cachegraph.agents.prompt.template_usage import Use
from cachegraph.agents.spec import AgentSpec


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("{{ a }}", Use.PRINTED),
        ("{{ a | trim }} and {{ 'b: ' ~ a }}", Use.PRINTED),
        ("{{ a | default('nothing', true) }}", Use.PRINTED),
        ("{% if a %}{{ a }}{% else %}-{% endif %}", Use.PRINTED | Use.TESTED),
        ("{{ a if a else 'nothing' }}", Use.PRINTED | Use.TESTED),
        ("{{ a or 'nothing' }}", Use.PRINTED | Use.TESTED),
        ("{% if not a and b %}first{% endif %}", Use.TESTED),
        ("{% if a is defined %}x{% endif %}", Use.TESTED),
        ("{{ a.data.advice }}", Use.DATA),
        ("{% for item in a.data.items %}{{ item }}{% endfor %}", Use.DATA),
        ("{% for n in range(3) %}{{ a }}{% endfor %}", Use.PRINTED),
        ("{{ a | upper }}", Use.WORKED_ON),
        ("{{ a[:10] }}", Use.WORKED_ON),
        ("{{ a.splitlines()[0] }}", Use.WORKED_ON),
        ("{% if 'yes' in a %}x{% endif %}", Use.WORKED_ON),
        ("{% if a == 'yes' %}x{% endif %}", Use.WORKED_ON),
        ("{% for line in a.splitlines() %}{{ line }}{% endfor %}", Use.WORKED_ON),
        ("{% set draft = a %}{{ draft }}", Use.WORKED_ON),
        ("{{ a | length }} characters: {{ a }}", Use.WORKED_ON | Use.PRINTED),
        ("{{ a * 2 }}", Use.WORKED_ON),
        ("{% if a | length > 3 %}{{ a }}{% endif %}", Use.WORKED_ON | Use.PRINTED),
    ],
)
def test_every_use_of_a_name_is_known(source: str, use: Use) -> None:
    assert compile_template(source, None).uses["a"] == use


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{{ a }}", None),
        ("No slot.", None),  # it gets a message of its own
        ("{{ a | upper }}", "works on the words of 'a'"),
        ("{{ a.data.advice }}", "reads fields of what 'a' replies"),
        ("{% if a %}again{% endif %}", "asks whether 'a' has replied"),
        ("{{ a }} {{ a.data.advice }}", None),
    ],
)
def test_a_receiver_says_whose_words_it_needs(prompt: str, reason: str | None) -> None:
    reads = prompt_reads("b", AgentSpec(model="m", prompt=prompt), ["a"])
    assert (reason is None) == ("a" not in reads.words_of)
    assert reason is None or reason in reads.words_of["a"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ a }}",
        "{{ a | trim }}",
        "{{ 'b: ' ~ a }}",
        "{% if a %}So: {{ a }}{% endif %}",
        "{{ a or 'none' }}",
        "{{ a if a }}",
    ],
)
def test_a_name_whose_whole_text_is_always_printed_is_known(source: str) -> None:
    assert compile_template(source, None).whole == {"a"}


@pytest.mark.parametrize(
    "source",
    [
        "{{ a | upper }}",
        "{{ a | truncate(3) }}",
        "{{ a.data.x }}",
        "{% if b %}{{ a }}{% endif %}",
        "{{ a if b }}",
        "{{ b or a }}",
        "{% if a %}x{% endif %}",
        "{% for n in range(0) %}{{ a }}{% endfor %}",
        "plain",
    ],
)
def test_a_name_that_may_be_printed_in_part_or_not_at_all_is_not_whole(source: str) -> None:
    assert "a" not in compile_template(source, None).whole
