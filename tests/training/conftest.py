"""Trainings that take no time: tiny models, stories of a few words, and recipes for both kinds of fuser."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from tiny import config_of, save_model, save_tokenizer

from cachegraph.training.callbacks import NullCallback
from cachegraph.training.load import changed, load_training
from cachegraph.training.spec import TrainSpec
from cachegraph.training.train import OpenedTraining, open_training

OTHER_TEMPLATE = (
    "{% for m in messages %}<turn of {{ m.role }}>\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn of model>\n{% endif %}"
)
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo", "Kim", "Leo")
THINGS = ("a key", "a loaf", "two cats", "the map", "a red hat", "some tea")
SMALL: dict[str, dict[str, Any]] = {
    "graft": {"kind": "graft", "rank": 6, "hidden": 4, "ridge": {"tokens": 200}},
    "fuse": {"kind": "fuse", "architecture": "lean", "params": {"width": 4}},
    "joint": {
        "kind": "joint",
        "fuse": {"params": {"width": 4}},
        "graft": {"rank": 6, "hidden": 4, "ridge": {"tokens": 200}},
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_of_the_tests: Path) -> None:
    """Nothing of this machine but kernels and what is known of models reaches a training, and nothing of one it."""
    (tmp_path / "home").mkdir()
    for name in ("kernels", "checks", "tokenizers"):  # else each test verifies the same models again
        (tmp_path / "home" / name).symlink_to(home_of_the_tests / name)
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CACHEGRAPH_DEBUG", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("CACHEGRAPH_CATALOGUE", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`small`, a Llama with a chat template, and `twin`, which shares its tokenizer; `plain`, a Qwen without template;
    `other`, a Gemma with another tokenizer and template, and short windows."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "small": ("llama", {}),
        "twin": ("qwen2", {}),
        "plain": ("qwen3", {"template": None}),
        "other": ("gemma3_short_window", {"vocabulary": 280, "template": OTHER_TEMPLATE}),
    }
    folders = {}
    for seed, (name, (kind, options)) in enumerate(kinds.items()):
        folders[name] = tmp_path_factory.mktemp(name) / name
        save_tokenizer(save_model(config_of(kind), folders[name], seed=seed), **options)
    return folders


def story_rows(count: int = 24) -> list[dict[str, Any]]:
    """Two questions about each of `count / 2` stories."""
    rows = []
    for number in range(count // 2):
        who, thing = NAMES[number % len(NAMES)], THINGS[number % len(THINGS)]
        story = f"{who} saw {thing} on day {number}."
        other = THINGS[(number + 1 + number % 3) % len(THINGS)]
        rows.append({"context": story, "question": "What was seen?", "choices": [thing, other], "answer": 0})
        rows.append(
            {"context": story, "question": "Which day?", "choices": [str(number + 7), str(number)], "answer": 1}
        )
    return rows


@dataclass
class Task:
    """A folder with a graph, rows, and a training recipe `train.yaml`; `settings` are changes to the recipe."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Path:
        return self.folder / "train.yaml"

    @property
    def run(self) -> Path:
        """Where the checkpoints and the log are."""
        return self.folder / "made.training"

    def spec(self, **settings: Any) -> TrainSpec:
        named = {key.replace("__", "."): value for key, value in {**self.settings, **settings}.items()}
        return changed(load_training(self.recipe), named)

    def open_training(self, **settings: Any) -> Any:
        """A context that gives the models, the learner and the rows."""
        return open_training(self.spec(**settings), self.folder, self.folder, NullCallback(), Accelerator())

    def log(self) -> list[dict[str, Any]]:
        return read_log(self.run)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The numbers of a training that are the same whenever it is done."""
    clock = ("seconds", "prompt_tokens_per_second", "response_tokens_per_second")
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def write_task(
    folder: Path,
    models: Mapping[str, Path],
    kind: str,
    *,
    receiver: str = "small",
    sharer: str = "other",
    rows: list[dict[str, Any]] | None = None,
    fuser: Mapping[str, Any] | None = None,
    edge: Mapping[str, Any] | None = None,
    reader: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Task:
    """A graft's graph, in which the reader alone reads a story, a fuse's, in which both do, or a joint one's, in which
    both read the question."""
    graph = _graph(models, kind, receiver, sharer, edge or {}, reader or {})
    training = {
        "version": 1,
        "name": "tiny",
        "for": "graph.yaml",
        "data": {"source": "rows.jsonl", "dev": 0.25},
        "fuser": {**SMALL[kind], **(fuser or {})},
        "loss": {"next_token": 1, "choices": 1},
        "optim": {"steps": 6, "texts": 2, "rows": 2, "learning_rate": 0.01, "warmup": 2},
        "judge": {"every": 3, "rows": 6},
        "output": "made",
        **recipe,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    (folder / "train.yaml").write_text(yaml.safe_dump(training, sort_keys=False))
    given = story_rows() if rows is None else rows
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return Task(folder)


def _graph(
    models: Mapping[str, Path],
    kind: str,
    receiver: str,
    sharer: str,
    edge: Mapping[str, Any],
    reader: Mapping[str, Any],
) -> dict[str, Any]:
    both = "Read: {{ context }} {{ question }}"
    prompts = {
        "graft": ("{{ context }} So:", "Hear: {{ reader }}\n{{ question }}"),
        "fuse": (both, "{{ reader }}" + both + " Say:"),
        "joint": ("Now: {{ context }} {{ question }} So:", "Hear: {{ reader }}\n{{ question }} Say:"),
    }[kind]
    return {
        "version": 1,
        "name": "tiny",
        "models": {
            end: {"source": str(models[name]), "dtype": "float32", "device": "cpu"}
            for end, name in (("mine", receiver), ("theirs", sharer))
        },
        "inputs": {"context": {}, "question": {}},
        "agents": {
            "reader": {"model": "theirs", "prompt": prompts[0], **reader},
            "answerer": {
                "model": "mine",
                "system": "Be brief.",
                "prompt": prompts[1],
                "generate": {"max_new_tokens": 1},
            },
        },
        "edges": [
            {
                "from": "reader", "to": "answerer", "channel": "cache", "carries": "prompt", "fuser": "./made",
                "fallback": "error", **edge,
            }
        ],
        "output": "answerer",
        "evaluate": {"choices": "choices", "answer": "answer"},
    }  # fmt: skip


@pytest.fixture
def graft_task(tmp_path: Path, tiny_folders: dict[str, Path]) -> Task:
    return write_task(tmp_path / "task", tiny_folders, "graft")


@pytest.fixture
def fuse_task(tmp_path: Path, tiny_folders: dict[str, Path]) -> Task:
    return write_task(tmp_path / "task", tiny_folders, "fuse")


__all__ = ["OpenedTraining", "Task", "read_log", "story_rows", "write_task"]
