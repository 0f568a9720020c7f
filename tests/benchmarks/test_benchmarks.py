"""Every benchmark runs, at its smallest and with tiny models, and prints what it promises. How fast, nobody asks."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import concurrency
import contenders
import decode
import document_relay
import fact_paragraphs
import first_token
import fused_overhead
import many_runs
import psutil
import pytest
import serve_load
import serve_overhead
import sharer_depth
import start
import steady_state
import torch
import warm_run
from lean_fusers import lean
from live_server import served
from measuring import Range, alternate, ratios, show
from separate import Crashed, Separate
from tiny import config_of, save_model, save_tokenizer

from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.engine.model.load import load_model
from cachegraph.graph.graph import Graph

Told = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a fuser between them, and a recipe that uses all three."""
    folder = tmp_path_factory.mktemp("models")
    for seed, kind in enumerate(("llama", "qwen2")):
        save_tokenizer(save_model(config_of(kind), folder / kind, seed=seed))
    save_fuser(lean(load_model(folder / "llama"), load_model(folder / "qwen2")), folder / "fuser")
    (folder / "duo.yaml").write_text(
        "version: 1\nname: duo\nmodels: {small: ./llama, other: ./qwen2}\ninputs: {question: {}}\nagents:\n"
        '  expert: {model: other, prompt: "{{ question }}", generate: {max_new_tokens: 3}}\n'
        '  answerer: {model: small, prompt: "{{ expert }} {{ question }}", generate: {max_new_tokens: 3}}\n'
        "edges: [{from: expert, to: answerer, channel: cache, fuser: ./fuser}]\noutput: answerer\n"
    )
    (folder / "words.yaml").write_text(
        "version: 1\nname: words\nmodels: {small: ./llama}\ninputs: {question: {}}\nagents:\n"
        '  answerer: {model: small, prompt: "{{ question }}", generate: {max_new_tokens: 3}}\noutput: answerer\n'
    )
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """Call it with a benchmark and its options: what it prints as JSON; as a table it has the same title."""

    def run(benchmark: Any, *arguments: object) -> dict[str, Any]:
        shown: list[Any] = []

        def shows(*given: Any, json: bool) -> None:
            shown.append(given)
            show(*given, json=json)

        monkeypatch.setattr(benchmark, "show", shows)
        benchmark.main(["--quick", *map(str, arguments), "--json"])
        printed = capsys.readouterr()
        assert "round 1 of 1" in printed.err  # nobody waits without a word
        found: dict[str, Any] = json.loads(printed.out)
        show(*shown[0], json=False)
        table = capsys.readouterr().out.splitlines()
        assert table[0] == found["title"]
        assert table[-1].startswith("cpu ")
        assert {"cpu", "threads", "torch", "cachegraph"} <= found["machine"].keys()
        return found

    return run


class Inside:
    """A contender in this process: one of its own has to import torch."""

    def __init__(self, make: str, *arguments: Any):
        self.contender = getattr(contenders, make.removeprefix("contenders:"))(*arguments)
        self.methods = frozenset(dir(self.contender))

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.contender, method)(*arguments)

    def close(self) -> None: ...


class MadeUp:
    """A contender without a model; transformers crashes at the first reply."""

    methods = frozenset({"stream", "answers"})

    def __init__(self, make: str, *_: object):
        self.dies = make == "contenders:make_transformers"

    def call(self, method: str, *arguments: Any) -> Any:
        if self.dies:
            raise Crashed("its process died with SIGSEGV")
        made: dict[str, Any] = {
            "document": [1, 2, 3],
            "ids_of": [[1], [2]],
            "stream": contenders.Stream(0.1, 20.0, [1, 2, 3, 4]),
            "answers": contenders.Answers(1.0, 30.0),
        }
        return made[method]

    def close(self) -> None: ...


def test_decode(models: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "Separate", Inside)
    found = told(decode, "--model", models / "llama")
    assert found["same_tokens_as_ours"]["cachegraph"] == 4
    assert {"cachegraph", "transformers"} <= found["one_stream_tokens_s"].keys()
    assert found["answers_wall_s"]["cachegraph"]["median"] > 0
    assert found["of_the_bound"]["cachegraph"]["median"] > 0


def test_decode_leaves_out_a_contender_that_crashes(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "Separate", MadeUp)
    decode.main(["--quick", "--json", "--model", str(models / "llama"), "--gguf-dtypes"])
    printed = capsys.readouterr()
    assert "transformers: its process died with SIGSEGV; it is left out" in printed.err
    found = json.loads(printed.out)
    for key in ("one_stream_tokens_s", "answers_wall_s", "same_tokens_as_ours", "of_the_bound"):
        assert found[key].keys() == {"cachegraph", "cachegraph int8"}


CONTENDER = """
import os, signal
class Contender:
    def __init__(self, name): self.name = name
    def double(self, value): print("noise"); return [self.name, 2 * value]
    def die(self): os.kill(os.getpid(), signal.SIGSEGV)
    def leave(self): os._exit(7)
    def fail(self): raise RuntimeError("on purpose")
"""


def test_a_contender_in_a_process_of_its_own_may_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crashing.py").write_text(CONTENDER)
    monkeypatch.syspath_prepend(str(tmp_path))

    def ended(method: str) -> str:
        contender = Separate("crashing:Contender", "one")
        with pytest.raises(Crashed) as raised:
            contender.call(method)
        with pytest.raises(Crashed):
            contender.call("double", 1)
        contender.close()
        return str(raised.value)

    contender = Separate("crashing:Contender", "one")
    assert contender.call("double", 21) == ["one", 42]
    assert "double" in contender.methods
    contender.close()
    assert ended("die") == "its process died with SIGSEGV"
    assert ended("leave") == "its process ended with exit code 7"
    assert ended("fail") == "its process ended with exit code 1"
    assert "RuntimeError: on purpose" in capfd.readouterr().err


def test_a_crash_in_any_round_leaves_the_others_with_all_their_results(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def fragile() -> int:
        calls.append(1)
        if len(calls) == 3:
            raise Crashed("it died")
        return 1

    assert alternate({"fragile": fragile, "sound": lambda: 2}, 4) == {"sound": [2, 2, 2, 2]}
    said = capsys.readouterr().err.splitlines()
    assert "fragile: it died; it is left out" in said
    rounds = [line for line in said if line.startswith("round ")]
    assert [line.split(":")[0] for line in rounds] == [f"round {number} of 4" for number in range(1, 5)]
    assert rounds[0].endswith("s left")


def test_steady_state(models: Path, told: Told) -> None:
    given = ("--recipes", models, "--names", "duo", "words", "--characters", 300, "--runs", 8)
    found = told(steady_state, *given)
    steady, fresh = found["windows"]["steady"], found["windows"]["fresh"]
    assert steady["hits"] > fresh["hits"]
    assert steady["hits"] + steady["prefilled"] == fresh["hits"] + fresh["prefilled"]
    assert steady["grafted"] == 0
    assert found["kept_bytes"] > 0
    assert found["steady_over_fresh"]["median"] > 0


def test_concurrency(models: Path, told: Told) -> None:
    found = told(concurrency, "--model", models / "llama", "--dtype", "float32")
    assert found["over_one"].keys() == {"1", "2"}
    assert found["over_one"]["1"]["median"] == 1


def test_many_runs(models: Path, told: Told) -> None:
    found = told(many_runs, "--recipe", models / "duo.yaml", "--dtype", "float32")
    assert found["same_replies"] == {"text": 2, "cache": 2}


def test_fused_overhead(models: Path, told: Told) -> None:
    ends = ("--receiver", models / "llama", "--sharer", models / "qwen2", "--fuser", models / "fuser")
    found = told(fused_overhead, *ends, "--dtype", "float32")
    split = found["prompts"]["16"]["fused_split_s"]
    assert split["fuse"] > 0
    assert split["sharer prefill"] > 0
    assert found["prompts"]["16"]["alone_split_s"]["fuse"] == 0


def test_first_token(models: Path, told: Told) -> None:
    found = told(first_token, "--model", models / "llama", "--dtype", "float32")
    assert {"prefilled", "grafted", "moved"} <= found["sooner"].keys()


def test_every_fact_question_has_two_choices_of_its_paragraph_and_two_others() -> None:
    found = fact_paragraphs.rows(10, 0)
    assert found == fact_paragraphs.rows(10, 0)
    for row in found:
        context, choices, answer = str(row["context"]), row["choices"], row["answer"]
        assert isinstance(choices, list)
        assert isinstance(answer, int)
        assert choices[answer] in context
        assert sum(choice in context for choice in choices) == 2


def test_sharer_depth(models: Path, told: Told) -> None:
    ends = ("--receiver", models / "llama", "--sharer", models / "qwen2", "--dtype", "float32", "--layers", 1)
    found = told(sharer_depth, *ends)
    assert found["cpu_s"].keys() == {"all 3 layers", "the first 1"}
    assert found["part"]["n"] == 1


@pytest.mark.parametrize("benchmark", [decode, concurrency, first_token], ids=lambda each: each.__name__)
def test_a_profile_names_operations(benchmark: Any, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--quick", "--profile", "--model", str(models / "llama")])
    assert "aten::" in capsys.readouterr().out


def test_contenders_take_turns_in_both_orders_and_are_compared_round_by_round() -> None:
    order: list[str] = []

    def take(name: str) -> int:
        order.append(name)
        return len(order)

    given = alternate({name: partial(take, name) for name in "ab"}, 2)
    assert "".join(order) == "ab" + "ab" + "ba"
    assert ratios(given["b"], given["a"]) == Range([4 / 3, 5 / 6])
    assert Range([3, 1, 2]) == {"median": 2, "low": 1, "high": 3, "n": 3}


def test_document_relay(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CACHEGRAPH_PREFIX_REUSE", "1")  # which the benchmark turns off
    monkeypatch.setattr("sys.argv", ["document_relay.py", "--tokens=40", "--answerers=2", "--reply=2", "--repeats=1"])
    monkeypatch.setattr(document_relay, "MODEL", str(models / "llama"))
    document_relay.main()
    assert "text/cache (range)" in capsys.readouterr().out


def test_start(models: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of torch take seconds, so that these are made up."""
    mega = 2**20
    runs = start.Process(5.0, 4.0, 900 * mega, '{"loading": {"seconds": 1.0, "models": {}}}')
    imports = iter(start.Process(seconds, seconds - 0.5, 400 * mega, "") for seconds in (1.0, 3.0) * 4)
    monkeypatch.setattr(start, "ended", lambda command: runs if "run" in command else next(imports))
    found = told(start, models / "duo.yaml")
    assert [found["over"][name]["wall"]["median"] for name in start.IMPORTS] == [4.0, 2.0]
    assert [found["over"][name]["cpu"]["median"] for name in start.IMPORTS] == [3.5, 1.5]
    weights = sum((models / name / "model.safetensors").stat().st_size for name in ("llama", "qwen2"))
    assert found["weights_bytes"] == weights
    assert found["peak_over_imports_per_weights"]["median"] == pytest.approx(500 * mega / weights)


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A recipe that needs no model."""
    (tmp_path / "steps.py").write_text(serve_overhead.STEPS)
    (tmp_path / "nothing.yaml").write_text(serve_overhead.RECIPE)
    return tmp_path / "nothing.yaml"


def test_serve_load(nothing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def here(recipe: Path, **_: Any) -> Iterator[tuple[int, int]]:
        with served([Graph.from_yaml(recipe, allow_code=True)]) as server:
            yield os.getpid(), int(server.url.rpartition(":")[2])

    monkeypatch.setattr(serve_load, "started", here)
    monkeypatch.setattr(psutil.Process, "kill", lambda _: None)  # this process stays: its next server finds ended runs
    serve_load.main(["--quick", "--json", "--tokens", "0", "--recipe", str(nothing)])
    found = json.loads(capsys.readouterr().out)
    assert found["stream"]["errors"] == 0
    assert found["stream"]["together"]["answers"].keys() == {"200"}
    assert found["vanish"]["is_clean"]
    assert found["fuzz"]["lives"]
    assert found["fuzz"]["answers"].keys() <= {"2xx", "4xx", "not sent", "tracebacks", "paths"}
    assert found["fuzz"]["answers"]["tracebacks"] == found["fuzz"]["answers"]["paths"] == 0
    assert found["kill"]["acknowledged"] > 0
    assert found["kill"]["became"] == {"finished": found["kill"]["acknowledged"]}


def test_serve_overhead(nothing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def here(recipe: Path) -> Iterator[tuple[int, int]]:
        with served([Graph.from_yaml(recipe, allow_code=True)]) as server:
            yield os.getpid(), int(server.url.rpartition(":")[2])

    monkeypatch.setattr(serve_overhead, "started", here)
    serve_overhead.main(["--requests", "2"])
    assert "chat completion" in capsys.readouterr().out


def test_warm_run(nothing: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def here(recipe: Path, home: Path) -> Iterator[tuple[int, int]]:
        with served([Graph.from_yaml(recipe, allow_code=True)]) as server:
            yield os.getpid(), int(server.url.rpartition(":")[2])

    monkeypatch.setattr(warm_run, "started", here)
    found = told(warm_run, nothing)["seconds"]
    assert all(each["first"]["median"] > 0 for each in found.values())
    assert found["cachegraph run --server"]["cpu"]["median"] > 0


def test_a_process_is_measured_alone() -> None:
    small, large = (start.ended([sys.executable, "-c", f"print(len(b'x' * {size}))"]) for size in (1, 10**8))
    assert (small.output, large.output) == ("1\n", "100000000\n")
    assert large.peak - small.peak > 0.8 * 10**8
    assert large.cpu > 0
    assert large.cpu < large.wall + 1
    with pytest.raises(SystemExit, match="ended with 3"):
        start.ended([sys.executable, "-c", "raise SystemExit(3)"])
