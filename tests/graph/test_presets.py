"""Presets of endpoints: `ollama/llama3.2` as a model's source."""

import pytest
from jsonschema import Draft202012Validator

from cachegraph.agents.endpoint.request import body_of
from cachegraph.agents.endpoint_presets import PRESETS
from cachegraph.agents.spec import EndpointSpec
from cachegraph.engine.spec import GenerateSpec, ModelSpec
from cachegraph.errors import RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.json_schema import recipe_schema
from cachegraph.graph.recipe.load import dump_recipe, parse_recipe
from cachegraph.graph.recipe.spec import GraphSpec


def recipe(models: str, agent: str = "far", generate: str = "{}") -> str:
    return (
        f"version: 1\nname: ask\nmodels: {models}\n"
        f"agents:\n  a: {{model: {agent}, prompt: hello, generate: {generate}}}\noutput: a\n"
    )


def endpoint(models: str, agent: str = "far") -> EndpointSpec:
    spec = parse_recipe(recipe(models, agent))
    assert parse_recipe(dump_recipe(spec)) == spec
    found = spec.models[spec.speaker("a").model]
    assert isinstance(found, EndpointSpec)
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_valid_recipe_with_its_address_and_key(name: str) -> None:
    found = endpoint(f"{{far: {name}/some/model}}")
    preset = PRESETS[name]
    assert (found.base_url, found.model, found.api_key_env) == (preset.base_url, "some/model", preset.key)
    assert preset.base_url.startswith("https://" if preset.key else "http://localhost:")


def test_an_agent_may_name_a_preset_itself() -> None:
    assert endpoint("{}", "ollama/llama3.2").model == "llama3.2"
    spec = parse_recipe(recipe("{ollama_llama3_2: b/c}", "ollama/llama3.2"))
    assert spec.models.keys() == {"ollama_llama3_2", "ollama_llama3_2_2"}
    assert spec.speaker("a").model == "ollama_llama3_2_2"
    graph = Graph(name="g")
    graph.add_agent("a", model="openai/gpt-5-mini", prompt="hello")
    graph.output = "a"
    assert graph.spec.models == {"openai_gpt_5_mini": endpoint("{far: openai/gpt-5-mini}")}


def test_what_the_entry_says_stays_and_no_key_goes_to_another_address() -> None:
    found = endpoint("{far: {source: mistral/m, base_url: 'https://gateway.example/v1', extra_body: {safe: true}}}")
    assert (found.base_url, found.api_key_env, found.extra_body) == ("https://gateway.example/v1", None, {"safe": True})
    own = endpoint("{far: {source: openai/m, headers: {Authorization: {env: CACHEGRAPH_KEY}}}}")
    assert own.api_key_env is None


@pytest.mark.parametrize("entry", ["openai/gpt-oss-20b", "{source: openai/x, revision: main}", "./vllm/model"])
def test_models_of_the_hub_and_folders_stay_local(entry: str) -> None:
    found = parse_recipe(recipe(f"{{far: {entry}}}")).models["far"]
    assert isinstance(found, str | ModelSpec)


@pytest.mark.parametrize(
    ("models", "generate", "words"),
    [
        ("{far: ollama/x}", "{top_k: 4}", "ollama ignores 'top_k', which agent 'a' sets"),
        ("{far: {source: anthropic/x}}", "{seed: 1}", "anthropic ignores 'seed'"),
        ("{far: {source: ollama/x, dtype: bfloat16}}", "{}", "unknown key 'dtype'"),
        ("{far: {source: nobody/x, base_url: 'https://a.example/v1', model: m}}", "{}", "must be a preset and a model"),
        (
            "{far: {source: openai/x, base_url: 'https://a.b/v1', api_key_env: GROQ_API_KEY}}",
            "{}",
            "api.groq.com",
        ),
        ("{far: {source: ollama/x, headers: 3}}", "{}", "headers"),
    ],
)
def test_what_a_preset_can_not_do_is_said_with_its_place(models: str, generate: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as failed:
        parse_recipe(recipe(models, generate=generate))
    assert failed.value.problems[0].line


def test_settings_that_equal_the_default_are_not_ignored() -> None:
    parse_recipe(recipe("{far: ollama/x}", generate="{top_k: 0, top_p: 0.5}"))


def test_a_server_gets_its_own_names_of_parameters() -> None:
    def sent(source: str, **settings: object) -> dict[str, object]:
        found = endpoint(f"{{far: {source}}}")
        return body_of("a", found, [], GenerateSpec.model_validate(settings), None)

    assert sent("mistral/m", seed=3)["random_seed"] == 3
    assert "seed" not in sent("mistral/m", seed=3)
    assert sent("lmstudio/m", repetition_penalty=1.5)["repeat_penalty"] == 1.5
    assert sent("vllm/m", repetition_penalty=1.5, seed=3).items() >= {"repetition_penalty": 1.5, "seed": 3}.items()


@pytest.mark.parametrize(
    ("entry", "valid"),
    [
        ({"source": "ollama/x"}, True),
        ({"source": "ollama/x", "headers": {"X-Title": "t"}}, True),
        ({"source": "some/hub-model", "headers": {}}, False),
        ({"headers": {}}, False),
    ],
)
def test_the_schema_of_editors_knows_presets(entry: object, valid: bool) -> None:
    data = {"version": 1, "name": "a", "models": {"far": entry}, "agents": {"a": {"model": "far", "prompt": ""}}}
    assert Draft202012Validator(recipe_schema()).is_valid({**data, "output": "a"}) == valid
    if valid:
        GraphSpec.model_validate({**data, "output": "a"})
