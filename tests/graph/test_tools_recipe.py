"""The tools of a recipe: who may name what, and where the mistakes are."""

import pytest

from cachegraph.errors import RecipeError
from cachegraph.graph.recipe.load import parse_recipe

RECIPE = """\
version: 1
name: tooled
inputs: {q: {}}
tools:
  calc: {command: [python, calc.py], env: {MODE: plain}}
  web: {url: "https://example.com/mcp", api_key_env: CACHEGRAPH_WEB_KEY}
agents:
  solver:
    model: m
    prompt: "{{ q }}"
    tools: [calc, web.search]
    tool_limits: {rounds: 3}
output: solver
"""


def problems(old: str, new: str, *, allow_code: bool = True) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE.replace(old, new), allow_code=allow_code)
    return [
        f"{problem.line}: {problem.message}; {problem.hint}".removesuffix("; ") for problem in caught.value.problems
    ]


def test_a_recipe_with_tools_is_read() -> None:
    spec = parse_recipe(RECIPE, allow_code=True)
    assert spec.tools["calc"].timeout == 60
    assert spec.speakers["solver"].tool_limits.rounds == 3


def test_a_program_is_run_only_where_code_is_allowed() -> None:
    (problem,) = problems("", "", allow_code=False)
    assert problem.startswith("5: the tool server 'calc' would run a program; if you trust this recipe")


def test_a_server_of_this_machine_is_used_only_where_code_is_allowed() -> None:
    local = RECIPE.replace("{command: [python, calc.py], env: {MODE: plain}}", '{url: "http://127.0.0.1:8000/mcp"}')
    with pytest.raises(RecipeError, match="the tool server 'calc' is one of this machine"):
        parse_recipe(local)
    parse_recipe(local, allow_code=True)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "calc, web",
            "clac, web",
            "11: agent 'solver' has tools of 'clac', which is not a key of 'tools'; did you mean 'calc'?",
        ),
        ("rounds: 3", "rounds: 0", "12: 'rounds' must be a whole number above 0, got 0"),
        ("rounds: 3", "round: 3", "12: unknown key 'round'; did you mean 'rounds'?"),
        ("{command: [python, calc.py], env: {MODE: plain}}", "{}", "5: tool 'calc' needs the key 'command'"),
        ("env: {MODE", "envs: {MODE", "5: unknown key 'envs'; did you mean 'env'?"),
        ("https://example.com/mcp", "ftp://example.com", "6: 'url' must be a web address such as 'https://host/mcp'"),
        ("https://example", "https://me:pw@example", "6: url holds a user name or password"),
        ("https://example", "http://example", "6: 'CACHEGRAPH_WEB_KEY' would travel unencrypted to 'example.com'"),
        ("CACHEGRAPH_WEB_KEY", "AWS_SECRET", "6: a recipe has no business with the environment variable 'AWS_SECRET'"),
        ("    tool_limits", "    generate: {max_new_tokens: 0}\n    tool_limits", "11: agent 'solver' writes nothing"),
    ],
)
def test_mistakes_are_named_with_their_line(old: str, new: str, problem: str) -> None:
    assert any(each.startswith(problem) for each in problems(old, new)), problems(old, new)


def test_a_schema_that_would_keep_a_local_model_from_its_tools_is_refused() -> None:
    held = "    generate: {json_schema: {type: object}}\n    tool_limits"
    (problem,) = problems("    tool_limits", held)
    assert problem == (
        "12: agent 'solver' has a json_schema, which would keep its local model from calling its tools; "
        "let one agent call tools and the next put it into the schema"
    )
    far = "models: {m: {base_url: 'https://example.com/v1', model: large}}\nagents:"
    spec = parse_recipe(RECIPE.replace("    tool_limits", held).replace("agents:", far), allow_code=True)
    assert spec.speakers["solver"].generate.json_schema is not None
