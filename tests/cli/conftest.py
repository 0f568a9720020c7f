"""The command line as people meet it: its exit code, what it prints where; on models that take no time."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from cachegraph.cli import main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]
Spawn = Callable[..., Ended]

DUO = """\
version: 1
name: duo
models: {small: ./llama}
inputs:
  question: {description: Anything.}
agents:
  reader: {model: small, prompt: "the sky", generate: {max_new_tokens: 4, ignore_eos: true}}
  writer: {model: small, prompt: "{{ reader }} {{ question }}", generate: {max_new_tokens: 6, ignore_eos: true}}
edges:
  - {from: reader, to: writer, channel: cache, carries: reply}
output: writer
"""


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models and a recipe for each way a run can go."""
    from tiny import KINDS, save_model, save_tokenizer

    folder = tmp_path_factory.mktemp("recipes")
    for kind in ("llama", "qwen2"):
        save_tokenizer(save_model(KINDS[kind](), folder / kind))
    (folder / "duo.yaml").write_text(DUO)
    other = DUO.replace("small: ./llama}", "small: ./llama, other: ./qwen2}").replace(
        "reader: {model: small", "reader: {model: other"
    )
    (folder / "fallback.yaml").write_text(other)
    (folder / "strict.yaml").write_text(other.replace("carries: reply", "fallback: error"))
    (folder / "failing.yaml").write_text(DUO.replace('{{ question }}"', '{{ question }}", timeout: 0.000001'))
    broken = DUO.replace('"{{ reader }} {{ question }}"', '"{{ reader }} {{ question }}" ').replace("./llama", "./none")
    (folder / "modelless.yaml").write_text(broken)
    (folder / "typo.yaml").write_text(DUO.replace("max_new_tokens: 6", "max_new_token: 6"))
    (folder / "misnamed.yaml").write_text(DUO.replace("./llama", "smolm2-135m-instruct"))
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's settings reaches a command; what `--debug` sets is taken back."""
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CACHEGRAPH_DEBUG", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("CACHEGRAPH_CATALOGUE", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call it with arguments to run the command here; `stdin` is what it reads."""
    # A command that is stopped ends its process at once, which here is the tests' own.
    monkeypatch.setattr("cachegraph.cli.signals.os", SimpleNamespace(_exit=sys.exit))

    def run(*arguments: str | Path, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["cachegraph", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def spawn() -> Spawn:
    """Call it with arguments to run the command in a process of its own."""

    def run(*arguments: str | Path, **more: str) -> Ended:
        command = [sys.executable, "-m", "cachegraph", *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=False, timeout=120)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run
