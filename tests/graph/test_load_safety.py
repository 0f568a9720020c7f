from pathlib import Path

import pytest

from cachegraph.errors import RecipeError
from cachegraph.graph.recipe.check import check_spec
from cachegraph.graph.recipe.load import load_recipe, parse_recipe
from cachegraph.graph.recipe.spec import GraphSpec

RECIPE = """\
version: 1
name: x
models:
  far: {{{far}}}
agents:
  a: {{model: far, prompt: hello}}
output: a
"""


def endpoint(url: str, key: str | None = None, **options: object) -> str:
    """What is said of an endpoint; empty where nothing is wrong."""
    far = f"base_url: '{url}', model: m" + (f", api_key_env: {key}" if key else "")
    try:
        parse_recipe(RECIPE.format(far=far), **options)  # type: ignore[arg-type]
    except RecipeError as error:
        return "\n".join(problem.message for problem in error.problems)
    return ""


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://example.com/v1", None),
        ("http://example.com/v1", None),
        ("https://example.com/v1", "CACHEGRAPH_KEY"),
        ("http://localhost:8000/v1", "CACHEGRAPH_KEY"),
        ("http://127.0.0.9:1/v1", "CACHEGRAPH_KEY"),
        ("http://[::1]:8000/v1", "CACHEGRAPH_KEY"),
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com:443/v1", "OPENAI_API_KEY"),
    ],
)
def test_a_key_may_go_where_its_user_would_send_it(url: str, key: str | None) -> None:
    assert endpoint(url, key) == ""


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("https://example.com/v1", "AWS_SECRET_ACCESS_KEY", "has no business with"),
        ("https://example.com/v1", "OPENAI_API_KEY", "goes to https://api.openai.com only"),
        ("https://api.openai.com.example.com/v1", "OPENAI_API_KEY", "goes to https://api.openai.com only"),
        ("https://example.com/api.openai.com", "OPENAI_API_KEY", "goes to https://api.openai.com only"),
        ("https://api.openai.com:8443/v1", "OPENAI_API_KEY", "goes to https://api.openai.com only"),
        ("https://api.openai.com@example.com/v1", "OPENAI_API_KEY", "user name or password"),
        ("http://api.openai.com/v1", "OPENAI_API_KEY", "goes to https://api.openai.com only"),
        ("http://example.com/v1", "CACHEGRAPH_KEY", "would travel unencrypted"),
        ("http://localhost.example.com/v1", "CACHEGRAPH_KEY", "would travel unencrypted"),
        ("https://user:word@example.com/v1", None, "user name or password"),
        ("https://example.com\\@api.openai.com/v1", "OPENAI_API_KEY", "not a plain web address"),
        ("https://[::1/v1", None, "not a plain web address"),
        ("https://example.com:99999/v1", None, "not a plain web address"),
        ("https://:80/v1", None, "not a plain web address"),
        ("file:///etc/passwd", None, "must be a web address"),
        ("https://example.com/v1", "path", "must be the name of an environment variable in capitals"),
    ],
)
def test_a_stranger_s_recipe_sends_no_secret_away(url: str, key: str | None, said: str) -> None:
    assert said in endpoint(url, key)


def test_the_caller_may_allow_a_variable_but_not_its_journey_in_the_clear() -> None:
    assert endpoint("https://example.com/v1", "TOGETHER_KEY", allow_env=["TOGETHER_KEY"]) == ""
    assert endpoint("https://example.com/v1", "OPENAI_API_KEY", allow_env=["OPENAI_API_KEY"]) == ""
    assert "unencrypted" in endpoint("http://example.com/v1", "TOGETHER_KEY", allow_env=["TOGETHER_KEY"])


EDGE = """\
version: 1
name: x
models: {{far: {{base_url: https://example.com/v1, model: m}}}}
agents:
  a: {{model: far, prompt: hello}}
  b: {{model: m, prompt: "{{{{ a }}}}"}}
edges: [{{from: a, to: b, channel: {channel}, fallback: {fallback}}}]
output: b
"""


@pytest.mark.parametrize("channel", ["cache", "both"])
def test_an_endpoint_has_no_cache_to_insist_on(channel: str) -> None:
    assert parse_recipe(EDGE.format(channel=channel, fallback="text"))
    with pytest.raises(RecipeError, match=r"<recipe>:7:\d+: agent 'a' sits behind an endpoint"):
        parse_recipe(EDGE.format(channel=channel, fallback="error"))


FILES = """\
version: 1
name: x
models:
  local: {{source: "{source}", chat_template: "{template}"}}
agents:
  a: {{model: local, prompt: hello}}
  b: {{model: "{model}", prompt: "{{{{ a }}}}"}}
edges: [{{from: a, to: b, channel: cache, fuser: "{fuser}"}}]
output: b
"""
INSIDE = {"source": "./models/small", "template": "chat.jinja", "model": "m.gguf", "fuser": "./fusers/f"}


def write(folder: Path, **places: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(FILES.format(**{**INSIDE, **places}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "link").symlink_to(tmp_path / "outside")
    (recipe / "loop").symlink_to(recipe / "loop")
    return recipe


def test_paths_inside_the_recipe_s_folder_are_fine(folder: Path) -> None:
    assert load_recipe(write(folder))
    assert load_recipe(
        write(folder, source="Qwen/Qwen3-0.6B", model="org/name", fuser="smollm2--gemma", template="./x/../y")
    )


@pytest.mark.parametrize("key", INSIDE)
@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "../outside",
        "./a/../../outside",
        "a/../../b",
        "~/x",
        "link",
        "./link/x",
        "C:/x",
        "a\\\\..\\\\b",
        "./\\0",
    ],
)
def test_no_path_leaves_the_recipe_s_folder(folder: Path, key: str, place: str) -> None:
    path = write(folder, **{key: place})
    with pytest.raises(RecipeError, match="leads out of the recipe's folder") as caught:
        load_recipe(path)
    assert caught.value.problems[0].line in (4, 7, 8)
    assert load_recipe(path, allow_paths=True)


def test_a_link_to_a_recipe_is_read_from_where_it_lies(folder: Path) -> None:
    write(folder, source="./models/small")
    link = folder.parent / "link.yaml"
    link.symlink_to(folder / "recipe.yaml")
    assert load_recipe(link)


def test_a_graph_built_in_python_is_checked_by_the_same_rules() -> None:
    agents = {"a": {"model": "m", "prompt": "{{ b }}"}, "b": {"model": "m", "prompt": "x"}}
    spec = GraphSpec.model_validate({"version": 1, "name": "x", "agents": agents, "output": "a"})
    with pytest.raises(RecipeError, match="has a slot for agent 'b', but no edge leads from there") as caught:
        check_spec(spec)
    assert len(caught.value.problems) == 2
    edges = [{"from": "b", "to": "a", "channel": "text"}]
    check_spec(GraphSpec.model_validate({"version": 1, "name": "x", "agents": agents, "edges": edges, "output": "a"}))
