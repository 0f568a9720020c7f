"""Which inputs and replies reach whom over the decided channels, and what is said of those that reach nobody."""

from pathlib import Path
from typing import Any

import pytest

from cachegraph.channels.payload import Route
from cachegraph.errors import RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan.dataflow import Dataflow, Source
from cachegraph.graph.recipe.spec import GraphSpec

CHAIN: dict[str, Any] = {
    "version": 1,
    "name": "chain",
    "inputs": {"topic": {}},
    "agents": {
        "researcher": {"model": "small", "prompt": "Facts about {{ topic }}."},
        "writer": {"model": "large", "prompt": "{{ researcher }} Write about {{ topic }}."},
        "editor": {"model": "small", "prompt": "A headline for {{ writer }}"},
    },
    "edges": [{"from": "researcher", "to": "writer"}, {"from": "writer", "to": "editor"}],
    "output": "editor",
}

FUSE = {"used": "cache", "needs_text": False, "needs_cache": False, "fuser": "f"}
READ = {"used": "cache", "needs_text": False, "needs_cache": True, "carries": "prompt"}
REPLY = {"used": "cache", "needs_text": True, "needs_cache": True, "carries": "reply"}


def flow(data: dict[str, Any], **routes: dict[str, Any]) -> Dataflow:
    """`routes`: by sender__receiver, the decided form; text unless named."""
    spec = GraphSpec.model_validate(data)
    decided = {}
    for edge in spec.edges:
        form = routes.get(f"{edge.sender}__{edge.receiver}", {"used": "text"})
        decided[edge.sender, edge.receiver] = Route(edge, **form)
    return Dataflow(spec, decided)


def with_(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**data, **changes}


def told(found: Dataflow) -> list[str]:
    return [str(warning) for warning in found.warnings()]


@pytest.mark.parametrize("form", [{"used": "text"}, REPLY, {**REPLY, "carries": "all"}, {**REPLY, "used": "both"}])
def test_a_reply_carries_on_what_it_was_made_of(form: dict[str, Any]) -> None:
    found = flow(CHAIN, researcher__writer=form, writer__editor=form)
    assert found.heard["editor"] == {Source("topic"), Source("researcher", True), Source("writer", True)}
    assert told(found) == []
    assert found.cut_output() is None


def test_a_prompt_carries_on_what_was_read_and_not_the_reply() -> None:
    found = flow(CHAIN, writer__editor=READ)
    assert found.heard["editor"] == {Source("topic"), Source("researcher", True)}
    assert told(found) == []  # the author wrote `carries: prompt`


def test_an_output_that_hears_no_input_is_an_error_with_the_path_that_was_cut() -> None:
    found = flow(CHAIN, writer__editor=FUSE)
    assert found.cut_output() == (
        "the output gets none of the inputs: 'topic' -> 'writer' -x 'editor', since the fuser 'f' only corrects what "
        "'editor' reads itself; give the edge 'writer' -> 'editor' another channel"
    )


def test_what_an_agent_wrote_for_one_that_takes_no_turn_is_said_to_be_lost() -> None:
    agents = {**CHAIN["agents"], "editor": {"model": "small", "prompt": "{{ topic }}: a headline for {{ writer }}"}}
    edges = [CHAIN["edges"][0], {"from": "writer", "to": "editor", "channel": "cache", "carries": "prompt"}]
    found = flow(with_(CHAIN, agents=agents, edges=edges), writer__editor=FUSE)
    assert found.cut_output() is None
    assert told(found) == [
        (
            "over this channel the output never gets what 'researcher' wrote: 'researcher' -x 'writer', since "
            "'writer' takes no turn, because its fuser reads the prompt of 'editor'"
        )
    ]


def test_a_sender_that_takes_no_turn_is_said_so_where_its_author_has_not() -> None:
    agents = {
        "expert": {"model": "large", "prompt": "{{ question }}"},
        "answerer": {"model": "small", "prompt": "{{ expert }} {{ question }}"},
    }
    for carries, count in ((None, 1), ("prompt", 0)):
        edge = {"from": "expert", "to": "answerer", "channel": "cache", "carries": carries}
        data = with_(CHAIN, inputs={"question": {}}, agents=agents, edges=[edge], output="answerer")
        warnings = told(flow(data, expert__answerer=FUSE))
        assert len(warnings) == count
        assert all("nobody reads what 'expert' would write" in each for each in warnings)


def test_an_input_that_no_prompt_names_is_said() -> None:
    found = flow(with_(CHAIN, inputs={"topic": {}, "tone": {"default": "dry"}}))
    assert told(found) == ["no prompt names the input 'tone', so nobody reads it"]


@pytest.mark.parametrize(
    "place",
    [
        {"edges": [{"from": "researcher", "to": "writer", "when": "tone == 'dry'"}, CHAIN["edges"][1]]},
        {
            "agents": {
                **CHAIN["agents"],
                "writer": {"model": "large", "prompt": "{{ item }} {{ researcher }}", "for_each": "tone.splitlines()"},
            }
        },
        {"agents": {**CHAIN["agents"], "editor": {"model": "m", "system": "Be {{ tone }}.", "prompt": "{{ writer }}"}}},
    ],
)
def test_an_input_may_be_named_by_conditions_lists_and_system_messages(place: dict[str, Any]) -> None:
    found = flow(with_(CHAIN, inputs={"topic": {}, "tone": {}}, **place))
    assert not [each for each in told(found) if "'tone'" in each]


def test_what_a_condition_reads_is_not_lost() -> None:
    agents = {
        "judge": {"model": "small", "prompt": "Is {{ topic }} good?"},
        "writer": {"model": "small", "prompt": "{{ judge }}"},
    }
    edges = [{"from": "judge", "to": "writer", "channel": "cache", "carries": "prompt", "when": "'yes' in judge"}]
    assert told(flow(with_(CHAIN, agents=agents, edges=edges, output="writer"), judge__writer=READ)) == []


def test_loops_are_followed_round() -> None:
    agents = {
        "writer": {"model": "small", "prompt": "{{ topic }} {{ critic }}"},
        "critic": {"model": "small", "prompt": "{{ writer }}"},
    }
    edges = [{"from": "writer", "to": "critic"}, {"from": "critic", "to": "writer", "max_rounds": 3}]
    found = flow(with_(CHAIN, agents=agents, edges=edges, output="writer"), critic__writer=REPLY)
    assert found.heard["writer"] >= {Source("critic", True), Source("writer", True), Source("topic")}
    assert told(found) == []


def test_a_loop_whose_critic_takes_no_turn_is_said() -> None:
    agents = {
        "writer": {"model": "small", "prompt": "{{ topic }} {{ critic }}"},
        "critic": {"model": "large", "prompt": "{{ topic }} {{ writer }}"},
    }
    back = {"from": "critic", "to": "writer", "max_rounds": 3, "channel": "cache", "carries": "prompt"}
    data = with_(CHAIN, agents=agents, edges=[{"from": "writer", "to": "critic"}, back], output="writer")
    assert told(flow(data, critic__writer=READ)) == []
    assert told(flow(data, critic__writer=FUSE)) == [
        (
            "over this channel the output never gets its own reply of the round before: 'writer' -x 'critic', since "
            "'critic' takes no turn, because its fuser reads the prompt of 'writer'"
        )
    ]


def test_a_chain_of_a_thousand_agents_takes_no_time_to_follow() -> None:
    """Sets are shared as they spread; quadratic work would take minutes here."""
    agents = {"a0": {"model": "m", "prompt": "{{ topic }}"}}
    agents |= {f"a{n}": {"model": "m", "prompt": f"{{{{ a{n - 1} }}}}"} for n in range(1, 1000)}
    edges = [{"from": f"a{n - 1}", "to": f"a{n}"} for n in range(1, 1000)]
    found = flow(with_(CHAIN, agents=agents, edges=edges, output="a999"))
    assert Source("topic") in found.heard["a999"]


RECIPE = """\
version: 1
name: r
inputs: {topic: {}, tone: {default: dry}}
agents:
  writer:
    model: smollm2-135m-instruct
    prompt: |
      Write about {{ topic }}
      in a {tone} way.
output: writer
"""


def test_a_name_in_single_braces_is_said_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    graph = Graph.from_yaml(tmp_path / "r.yaml")
    assert [(warning.kind, str(warning)) for warning in graph.warnings()] == [
        ("unused_input", "no prompt names the input 'tone', so nobody reads it"),
        (
            "single_braces",
            (
                "the prompt of agent 'writer' holds '{tone}', which stays as it is; write '{{ tone }}' for the "
                "input 'tone'"
            ),
        ),
    ]


@pytest.mark.parametrize("literal", ['{{ topic }} as JSON: {"topic": 1}', "{{ topic }} {other}", "{{ {'topic': 1} }}"])
def test_other_braces_are_left_alone(tmp_path: Path, literal: str) -> None:
    recipe = RECIPE.replace("in a {tone} way.", literal).replace(", tone: {default: dry}", "")
    (tmp_path / "r.yaml").write_text(recipe)
    try:
        graph = Graph.from_yaml(tmp_path / "r.yaml")
    except RecipeError:
        return  # objects aren't written in templates
    assert graph.warnings() == []


def test_asking_whether_somebody_has_replied_is_not_hearing_what() -> None:
    agents = {**CHAIN["agents"], "editor": {"model": "small", "prompt": "{% if writer %}Go on.{% endif %} {{ topic }}"}}
    found = flow(with_(CHAIN, agents=agents))
    assert Source("writer", True) not in found.heard["editor"]
    assert told(found) == [
        (
            "the output never gets what 'researcher' wrote: 'researcher' -> 'writer' -x 'editor', since the prompt of "
            "'editor' only asks whether 'writer' has replied"
        ),
        (
            "the output never gets what 'writer' wrote: 'writer' -x 'editor', since the prompt of 'editor' only asks "
            "whether 'writer' has replied"
        ),
    ]


def test_an_input_that_only_switches_words_on_is_not_missed() -> None:
    agents = {
        **CHAIN["agents"],
        "editor": {"model": "small", "prompt": "{% if short %}Be brief.{% endif %} {{ writer }}"},
    }
    assert told(flow(with_(CHAIN, inputs={"topic": {}, "short": {}}, agents=agents))) == []


@pytest.mark.parametrize(
    "prompt",
    ["{{ writer.data.advice }}", "{{ writer | upper }}", "{% if writer %}{{ writer }}{% endif %}", "Go on."],
)
def test_a_reply_is_heard_whatever_else_is_done_with_it(prompt: str) -> None:
    agents = {**CHAIN["agents"], "editor": {"model": "small", "prompt": prompt}}
    found = flow(with_(CHAIN, agents=agents))
    assert Source("writer", True) in found.heard["editor"]
    assert told(found) == []


def test_each_output_is_told_apart() -> None:
    """What one output hears does not make up for what another one misses."""
    agents = {
        "expert": {"model": "large", "prompt": "{{ topic }}"},
        "first": {"model": "small", "prompt": "{{ expert }} Go."},
        "second": {"model": "small", "prompt": "{{ topic }}"},
    }
    edge = {"from": "expert", "to": "first", "channel": "cache", "carries": "prompt"}
    data = with_(CHAIN, agents=agents, edges=[edge], output={"one": "first", "two": "second"})
    found = flow(data, expert__first=FUSE)
    assert found.cut_output() is None
    assert told(found) == [
        (
            "over this channel 'first' never gets the input 'topic': 'topic' -> 'expert' -x 'first', since the fuser "
            "'f' only corrects what 'first' reads itself"
        )
    ]
    assert [warning.edge for warning in found.warnings()] == [("expert", "first")]


def test_a_function_that_hears_a_reply_does_not_make_up_for_the_output() -> None:
    agents = {**CHAIN["agents"], "log": {"function": "log.py:log"}}
    agents["editor"] = {"model": "small", "prompt": "{{ topic }}: a headline for {{ writer }}"}
    edges = [
        CHAIN["edges"][0],
        {"from": "researcher", "to": "log"},
        {"from": "writer", "to": "editor", "channel": "cache", "carries": "prompt"},
    ]
    found = flow(with_(CHAIN, agents=agents, edges=edges), writer__editor=FUSE)
    assert [warning.names for warning in found.warnings()] == [("researcher",)]


def test_a_sender_whose_fields_are_read_does_write() -> None:
    agents = {
        "expert": {"model": "large", "prompt": "{{ question }}"},
        "answerer": {"model": "small", "prompt": "{{ expert }} {{ question }} {{ expert.data.score }}"},
    }
    edge = {"from": "expert", "to": "answerer", "channel": "cache"}
    data = with_(CHAIN, inputs={"question": {}}, agents=agents, edges=[edge], output="answerer")
    found = flow(data, expert__answerer=FUSE)
    assert Source("expert", True) in found.heard["answerer"]
    assert told(found) == []


def test_an_included_recipe_whose_inputs_do_not_name_a_sender_hears_nothing_of_it() -> None:
    agents = {
        "researcher": {"model": "small", "prompt": "Facts about {{ topic }}."},
        "team": {"graph": "team.yaml", "inputs": {"text": "hello"}},
    }
    found = flow(with_(CHAIN, agents=agents, edges=[{"from": "researcher", "to": "team"}], output="team"))
    assert [each.rpartition("since ")[2] for each in told(found)] == [
        "the `inputs` of 'team' don't name 'researcher'"
    ] * 2


@pytest.mark.parametrize(
    ("channel", "said"),
    [
        ("cache", ["edge 'reader' -> 'writer' hands over text: there is no fuser 'nowhere'"]),
        ("both", ["edge 'reader' -> 'writer' hands over text: there is no fuser 'nowhere'"]),
        (
            "cache, fallback: error",
            ["edge 'reader' -> 'writer' can't run, since it has 'fallback: error': there is no"],
        ),
        ("auto", []),
    ],
)
def test_an_edge_that_will_not_hand_over_its_cache_is_said(tmp_path: Path, channel: str, said: list[str]) -> None:
    recipe = RECIPE.replace("in a {tone} way.", "{{ reader }}").replace(", tone: {default: dry}", "")
    recipe = recipe.replace("agents:\n", 'agents:\n  reader: {model: gemma-3-270m, prompt: "{{ topic }}"}\n')
    edge = f"{{from: reader, to: writer, channel: {channel}, fuser: nowhere}}"
    (tmp_path / "r.yaml").write_text(f"{recipe}edges: [{edge}]\n")
    warnings = Graph.from_yaml(tmp_path / "r.yaml").warnings()
    assert all(warning.kind == "falls_back" and warning.edge == ("reader", "writer") for warning in warnings)
    assert [str(warning)[: len(start)] for warning, start in zip(warnings, said, strict=True)] == said
