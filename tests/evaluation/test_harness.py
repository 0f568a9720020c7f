"""The harness's own tasks on recipes: a bare model against the harness's `hf`, and graphs against themselves."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny import config_of, save_model, save_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from cachegraph import Graph
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import CachegraphError, InputError, RunError
from cachegraph.evaluation.harness import __main__ as harness_command
from cachegraph.evaluation.harness.decoding import generate_spec
from cachegraph.evaluation.harness.model import CachegraphLM

TASKS = Path(__file__).parent / "harness_task"
ALL = ["cg_choice", "cg_spaced", "cg_write", "cg_text"]

BARE = """
version: 1
name: bare
models: {m: {source: MODEL, dtype: float32, device: cpu}}
inputs: {context: {}}
agents: {only: {model: m, prompt: "{{ context }}", chat: false}}
output: only
"""

# Both agents read the question; the first one's instruction is all that can be grafted.
DUO = """
version: 1
name: duo
models: {m: {source: MODEL, dtype: float32, device: cpu}}
inputs: {question: {}, hint: {default: Bees make honey.}}
agents:
  expert: {model: m, chat: false, prompt: "{{ hint }} ", generate: {max_new_tokens: 6}}
  answerer: {model: m, chat: false, prompt: "{{ expert }}{{ question }}", generate: {stop: [zzz]}}
edges: [{from: expert, to: answerer, channel: text}]
output: answerer
"""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip for all packages
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task files, told where their data are."""
    folder = tmp_path_factory.mktemp("tasks")
    for file in TASKS.glob("*.yaml"):
        (folder / file.name).write_text(file.read_text().replace("ITEMS", str(TASKS / "items.jsonl")))
    return folder


@pytest.fixture(scope="module", params=["without a first token", "with a first token"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(config_of("llama"), folder)
    save_tokenizer(folder)
    if request.param == "with a first token":
        raw = PreTrainedTokenizerFast.from_pretrained(folder, bos_token="<|im_start|>")
        raw.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", raw.bos_token_id)]
        )
        raw.save_pretrained(folder)
    return folder


def write_recipe(folder: Path, text: str, model: Path | str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text.replace("MODEL", str(model)))
    return str(path)


def evaluate(model: Any, tasks: Path, names: list[str], **more: Any) -> Any:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0, verbosity="ERROR", log_samples=True, **more
    )


def answers(found: Any, task: str) -> list[Any]:
    return [each["filtered_resps"] for each in sorted(found["samples"][task], key=lambda each: each["doc_id"])]


def numbers(found: Any, task: str) -> dict[str, float]:
    return {name: value for name, value in found["results"][task].items() if isinstance(value, float)}


def same(ours: Any, theirs: Any, names: list[str]) -> float:
    """The largest difference of a log-likelihood; everything else is equal."""
    worst = 0.0
    for task in names:
        assert numbers(ours, task) == pytest.approx(numbers(theirs, task), rel=1e-5)
        for mine, other in zip(answers(ours, task), answers(theirs, task), strict=True):
            if task == "cg_write":
                assert mine == other
                continue
            pairs = [(mine, other)] if task == "cg_text" else list(zip(mine, other, strict=True))
            for one, two in pairs:
                first, second = (one[0], two[0])
                worst = max(worst, abs(first - second))
                assert first == pytest.approx(second, abs=1e-4)
                assert one[1:] == two[1:]
    return worst


def request(kind: Any, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=("a task", 0, 1))


Make = Callable[..., CachegraphLM]


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Iterator[Make]:
    """A recipe as the harness's model; its models are let go at the end."""
    made: list[CachegraphLM] = []

    def make(text: str = BARE, **arguments: Any) -> CachegraphLM:
        recipe = write_recipe(tmp_path, text, model)
        made.append(CachegraphLM(recipe=recipe, allow_paths=True, **arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def hf(model: Path) -> HFLM:
    return HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=2)


# A bare model


def test_a_bare_model_gives_the_numbers_of_the_harness_own_model(make: Make, hf: HFLM, tasks: Path) -> None:
    same(evaluate(make(batch_size=4), tasks, ALL), evaluate(hf, tasks, ALL), ALL)


def test_so_it_does_as_an_agent_of_a_graph(make: Make, hf: HFLM, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachegraph.evaluation.harness.model.is_bare", lambda *_: False)
    names = ["cg_choice", "cg_write"]
    same(evaluate(make(), tasks, names), evaluate(hf, tasks, names), names)


def test_so_it_does_with_few_shots_in_the_models_chat_format(make: Make, hf: HFLM, tasks: Path) -> None:
    names, more = ["cg_choice", "cg_write"], {"apply_chat_template": True, "num_fewshot": 2, "limit": 5}
    same(evaluate(make(), tasks, names, **more), evaluate(hf, tasks, names, **more), names)


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("", "the sky is blue"),
        ("", "<|im_start|>the sky"),
        ("<|im_start|>the sky is", " blue"),
        ("the sky is\n\n  ", "blue"),
        ("the sky is bl", "ue and green"),  # a token across the seam
        ("the sky is blue " * 200, "and the sea"),  # loses its beginning
        ("the sky is", " blue and green" * 150),  # loses most of its context
    ],
)
def test_odd_contexts_are_read_as_the_harness_own_model_reads_them(
    context: str, continuation: str, make: Make, hf: HFLM
) -> None:
    asked = [request("loglikelihood", context, continuation)]
    (ours,), (theirs,) = make().loglikelihood(asked, True), hf.loglikelihood(asked, True)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4, rel=1e-6)
    assert ours[1] == theirs[1]


def test_texts_longer_than_the_model_reads_are_scored_in_windows(make: Make, hf: HFLM) -> None:
    asked = [request("loglikelihood_rolling", text) for text in ("the sea " * 500, "x", "")]
    ours, theirs = make().loglikelihood_rolling(asked, True), hf.loglikelihood_rolling(asked, True)
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_what_greedy_decoding_writes_is_greedy(make: Make, hf: HFLM) -> None:
    lm = make()
    (text,) = lm.generate_until([request("generate_until", "the sky", {"max_gen_toks": 1})], True)
    asked = [request("loglikelihood", "the sky", each) for each in (text, text + "?")]
    found = lm.loglikelihood(asked, True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in hf.loglikelihood(asked, True)]


def test_a_long_context_leaves_room_for_the_reply(make: Make, hf: HFLM) -> None:
    asked = [request("generate_until", "the sky is blue " * 200, {"until": ["\n\n"], "max_gen_toks": 16})]
    assert make().generate_until(asked, True) == hf.generate_until(asked, True)


def test_a_reply_as_long_as_the_model_is_refused(make: Make) -> None:
    with pytest.raises(RunError, match=r"task 'a task', example 0: a reply of 512 tokens leaves no room"):
        make().generate_until([request("generate_until", "the", {"max_gen_toks": 512})], True)


def test_repeats_are_sampled_again_and_the_seed_decides(make: Make) -> None:
    asked = [request("generate_until", "the sky", {"temperature": 1.0, "do_sample": True, "max_gen_toks": 12})] * 3
    first, again, other = (make(seed=seed).generate_until(asked, True) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first)) == 3


# Graphs


def test_a_text_edge_is_scored_as_the_prompt_with_the_reply_in_it(make: Make, model: Path) -> None:
    duo = make(DUO, channel="text", input="question")
    graph = Graph.from_yaml_text(DUO.replace("MODEL", str(model)), model, allow_paths=True)
    with graph:
        said = graph.run(question="Why?").agents["expert"].text
    asked = [request("loglikelihood", "Why?", each) for each in (" Because.", " No.")]
    whole = [request("loglikelihood", f"{said}Why?", each.args[1]) for each in asked]
    found, expected = duo.loglikelihood(asked, True), make(BARE).loglikelihood(whole, True)
    assert [each for each, _ in found] == pytest.approx([each for each, _ in expected], abs=1e-4)


def test_a_swap_of_channels_changes_what_is_scored_and_is_counted(make: Make, tasks: Path) -> None:
    by_text, by_cache = (make(DUO, channel=channel, input="question") for channel in ("text", "cache"))
    names = ["cg_choice", "cg_write"]
    words, caches = evaluate(by_text, tasks, names, limit=4), evaluate(by_cache, tasks, names, limit=4)
    assert answers(words, "cg_choice") != answers(caches, "cg_choice")
    # 4 contexts that are scored and 4 that are continued
    assert words["config"]["edges"] == {"expert -> answerer": {"used": {"text": 8}, "fell_back": {}}}
    assert caches["config"]["edges"] == {"expert -> answerer": {"used": {"cache": 8}, "fell_back": {}}}
    assert (caches["config"]["channel"], caches["config"]["recipe_input"]) == ("cache", "question")


def test_a_graph_writes_what_it_writes_elsewhere(make: Make, model: Path) -> None:
    (ours,) = make(DUO, input="question").generate_until([request("generate_until", "Why?", {"max_gen_toks": 9})], True)
    recipe = DUO.replace("MODEL", str(model)).replace("{stop: [zzz]}", "{stop: [zzz], max_new_tokens: 9}")
    with Graph.from_yaml_text(recipe, model, allow_paths=True) as graph:
        assert ours == graph.run(question="Why?").text


def test_a_fallback_is_counted_and_said(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    nothing_private = DUO.replace('prompt: "{{ hint }} "', 'prompt: "{{ question }}"')
    nothing_private = nothing_private.replace("max_new_tokens: 6", "max_new_tokens: 0")
    lm = make(nothing_private, channel="cache", input="question")
    with caplog.at_level(logging.WARNING, "lm_eval"):
        logging.getLogger("lm_eval").addHandler(caplog.handler)  # which does not hand its records on
        lm.loglikelihood([request("loglikelihood", "Why?", " No."), request("loglikelihood", "How?", " No.")], True)
        logging.getLogger("lm_eval").removeHandler(caplog.handler)
    (edge,) = lm.get_model_info()["edges"].values()
    assert edge["used"] == {"text": 2}
    assert sum(edge["fell_back"].values()) == 2
    assert "edge 'expert' -> 'answerer': text 2 times; fell back 2 times: " in caplog.text


def test_in_a_chat_the_continuation_follows_the_template_at_once(make: Make) -> None:
    lm = make(BARE.replace("chat: false", "chat: true"))
    one, other = lm.loglikelihood([request("loglikelihood", "Why?", each) for each in (" No.", "No.")], True)
    assert one == other


@pytest.mark.parametrize(
    ("text", "why"),
    [(DUO, "recipe 'duo' is not a bare model"), (BARE.replace("false", "true"), "agents only score replies")],
)
def test_a_text_as_a_whole_is_only_scored_by_a_bare_model(text: str, why: str, make: Make) -> None:
    lm = make(text, input="question" if text == DUO else "context")
    with pytest.raises(InputError, match=why):
        lm.loglikelihood_rolling([request("loglikelihood_rolling", "the sky")], True)


def test_a_graph_writes_its_chats_itself(make: Make) -> None:
    with pytest.raises(InputError, match="leave --apply_chat_template out"):
        make(DUO).apply_chat_template([{"role": "user", "content": "Why?"}])


# Arguments


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"chanel": "text"}, "there is no model argument 'chanel'; did you mean 'channel'"),
        ({"channel": "txt"}, "there is no channel 'txt'; did you mean 'text'"),
        ({"input": "questoin"}, "no input 'questoin'; did you mean 'question'"),
        ({"input": "hint"}, "give input 'question' of recipe 'duo' a default"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, not 0"),
        ({"max_length": "long"}, "max_length must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], why: str, make: Make) -> None:
    with pytest.raises(InputError, match=why):
        make(DUO, **arguments)


def test_a_recipe_without_edges_has_no_channel(make: Make) -> None:
    with pytest.raises(InputError, match="recipe 'bare' has no edges, so `channel=cache` means nothing"):
        make(BARE, channel="cache")


def test_a_recipe_is_needed() -> None:
    with pytest.raises(CachegraphError, match="name a recipe"):
        CachegraphLM()


def test_a_task_decides_length_stops_and_temperature_and_the_recipe_the_rest() -> None:
    recipe = GenerateSpec(max_new_tokens=3, temperature=0.5, top_k=4, stop=("z",))
    asked = {"until": ["a", "", "z"], "max_gen_toks": 7, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert generate_spec(recipe, asked, 5) == GenerateSpec(
        max_new_tokens=7, temperature=0.7, top_k=4, top_p=0.9, stop=("a", "z"), seed=5
    )
    assert generate_spec(recipe, {"until": "a"}, 5) == GenerateSpec(max_new_tokens=256, top_k=4, stop=("a", "z"))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"num_beams": 4}, "the task asks for generation argument 'num_beams'"),
        ({"temperature": 99.0, "do_sample": True}, "generation argument 'temperature' is wrong"),
    ],
)
def test_generation_arguments_that_we_lack_are_named(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        generate_spec(GenerateSpec(), asked, 0)


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with arguments to run the harness's command here; test_signals.py starts it as a process."""
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", False)  # it logs to the stderr of this test
    for name, value in {"handlers": [], "propagate": True}.items():
        monkeypatch.setattr(logging.getLogger("lm_eval"), name, value)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        monkeypatch.setattr(harness_command, "catch_signals", lambda: None)
        monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # 1000s of files
        harness_command.main()

    return run


@pytest.mark.parametrize("model", ["without a first token"], indirect=True)
def test_the_command_is_the_harness_own(
    tmp_path: Path, model: Path, tasks: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, DUO, model)
    known = f"recipe={recipe},channel=cache,input=question,allow_paths=True"
    more = [
        "--tasks",
        "cg_choice",
        "--include_path",
        str(tasks),
        "--limit",
        "3",
        "--output_path",
        str(tmp_path / "out"),
    ]
    command("--model", "cachegraph", "--model_args", known, *more)
    said = capsys.readouterr()
    assert "|cg_choice|" in said.out
    assert "edge 'expert' -> 'answerer': cache 3 times" in said.err
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["edges"]["expert -> answerer"]["used"] == {"cache": 3}


@pytest.mark.parametrize("model", ["without a first token"], indirect=True)
def test_the_command_says_what_is_wrong_in_a_sentence(
    tmp_path: Path, model: Path, tasks: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, DUO, model)
    known = f"recipe={recipe},channel=txt,allow_paths=True"
    with pytest.raises(SystemExit) as ended:
        command("--model", "cachegraph", "--model_args", known, "--tasks", "cg_choice", "--include_path", str(tasks))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "cachegraph: there is no channel 'txt'; did you mean 'text'?" in said
    assert "Traceback" not in said


# A real model


@pytest.mark.models
@pytest.mark.timeout(600)
def test_smollm2_gives_the_numbers_of_the_harness_own_model(
    demo_models: dict[str, Any], tasks: Path, tmp_path: Path
) -> None:
    folder = demo_models["smollm2-135m-instruct"].folder
    hf = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    theirs = evaluate(hf, tasks, ALL, limit=4)
    del hf
    lm = CachegraphLM(recipe=write_recipe(tmp_path, BARE, "smollm2-135m-instruct"))
    ours = evaluate(lm, tasks, ALL, limit=4)
    lm.close()
    assert same(ours, theirs, ALL) < 1e-4
