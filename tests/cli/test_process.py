"""What only a process of its own shows: how fast help is, Ctrl-C, pipes that close, no network."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cachegraph.channels.spec import CacheEdge
from cachegraph.engine.catalogue import StoredModel
from cachegraph.graph.recipe.load import load_recipe

from .conftest import Spawn

RECIPES = Path(__file__).parents[2] / "recipes"

LONG = """\
version: 1
name: long
models: {small: smollm2-135m-instruct}
agents:
  quick: {model: small, prompt: "Say hello.", generate: {max_new_tokens: 2}}
  slow: {model: small, prompt: "{{ quick }} Count.", generate: {max_new_tokens: 4000, ignore_eos: true}}
edges: [{from: quick, to: slow}]
output: slow
"""

HELP = """
import sys, time
began = time.process_time()
from cachegraph.cli import main
for words in (["--help"], *([each, "--help"] for each in sys.argv[1:])):
    sys.argv = ["cachegraph", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
assert "torch" not in sys.modules
assert "transformers" not in sys.modules
print("seconds", time.process_time() - began)
"""


def test_help_of_every_command_is_quick_and_needs_no_torch() -> None:
    commands = ("run", "validate", "show", "schema", "models", "fusers", "sessions", "compare")
    done = subprocess.run([sys.executable, "-c", HELP, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"Usage: cachegraph {command}" in done.stdout for command in commands)
    assert float(done.stdout.rsplit(maxsplit=1)[1]) < 1  # of the processor, all of them; torch alone takes longer


def test_the_module_is_the_command(spawn: Spawn) -> None:
    ended = spawn("--version")
    assert ended.code == 0
    assert ended.out.startswith("cachegraph 0.")


def test_published_c2c_is_valid_and_without_network_ends_in_one_sentence(spawn: Spawn) -> None:
    edge = load_recipe(RECIPES / "published-c2c.yaml").edges[0]
    assert isinstance(edge, CacheEdge)
    assert edge.fuser == "hub:nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser"
    ended = spawn("run", RECIPES / "published-c2c.yaml", HF_HUB_OFFLINE="1")
    assert ended.code == 3
    assert ended.out == ""
    assert ended.err.startswith("cachegraph: the hub model 'Qwen/Qwen2.5-0.5B-Instruct' is not on this disk")
    assert ended.err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m cachegraph schema | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.models
def test_ctrl_c_prints_what_finished_and_frees_everything(demo_models: dict[str, StoredModel], tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(LONG)
    command = [sys.executable, "-m", "cachegraph", "run", str(tmp_path / "long.yaml")]
    home = next(iter(demo_models.values())).folder.parents[1]
    variables = os.environ | {"CACHEGRAPH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables)
    assert process.stdout is not None
    begun = process.stdout.read(1)  # of the reply's first word
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    shown = err.decode()
    assert begun, shown
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert "interrupted" in shown
    assert "quick: Hello" in shown
    assert "slow (cancelled)" in shown
