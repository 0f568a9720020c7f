"""Ctrl-C, SIGTERM and SIGHUP end a command at once, with a word and an exit code of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """\
version: 1
name: slow
agents: {a: {function: "steps.py:a"}, b: {function: "steps.py:b"}}
edges: [{from: a, to: b}]
output: b
"""
SLOW = """\
import anyio
from pathlib import Path
def a() -> str: return "done"
async def b(a: str) -> str:
    (Path(__file__).parent / "busy").write_text("")
    await anyio.sleep(600)
    return ""
"""


def started(folder: Path, *more: str, before: str = "") -> "subprocess.Popen[str]":
    (folder / "slow.yaml").write_text(RECIPE)
    (folder / "steps.py").write_text(SLOW)
    code = f"{before}\nimport sys\nfrom cachegraph.cli import main\nmain()"
    command = [sys.executable, "-c", code, "run", str(folder / "slow.yaml"), "--allow-code", *more]
    env = {**os.environ, "CACHEGRAPH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(file: Path) -> None:
    end = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_stopped_run_is_recorded_as_cancelled_and_says_how_to_go_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = started(tmp_path)
    try:
        wait_for(tmp_path / "busy")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "interrupted; finished so far:" in err
    run = err.rpartition("cachegraph runs resume ")[2].split()[0]
    env = {**os.environ, "CACHEGRAPH_HOME": str(tmp_path / "home")}
    shown = subprocess.run(
        [sys.executable, "-m", "cachegraph", "runs", "show", run], capture_output=True, text=True, env=env, check=True
    )
    assert "cancelled" in shown.stdout


@pytest.mark.parametrize("before", ["", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"])
def test_a_job_in_the_background_ends_by_sigterm_too(before: str, tmp_path: Path) -> None:
    process = started(tmp_path, "--no-store", "--quiet", before=before)
    try:
        wait_for(tmp_path / "busy")
        process.terminate()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert (out, err) == ("", "cachegraph: interrupted\n")


def test_nohup_keeps_a_run_going(tmp_path: Path) -> None:
    process = started(tmp_path, "--no-store", before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    try:
        wait_for(tmp_path / "busy")
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        process.communicate()


LOADING = """\
import threading
from pathlib import Path
def load(*_, **__):
    Path({busy!r}).write_text("")
    threading.Event().wait(600)
import cachegraph.engine.pool as pool
pool._lease = load
"""


def test_ctrl_c_does_not_wait_for_a_model_that_is_being_loaded(tmp_path: Path) -> None:
    recipe = (
        'version: 1\nname: m\nmodels: {m: smollm2-135m-instruct}\nagents: {a: {model: m, prompt: "x"}}\noutput: a\n'
    )
    (tmp_path / "m.yaml").write_text(recipe)
    before = LOADING.format(busy=str(tmp_path / "busy"))
    code = f"{before}\nimport cachegraph.cli.fetch as fetch\nfetch.fetch_models = lambda *_: None\n"
    code += "from cachegraph.cli import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(tmp_path / "m.yaml"), "--no-store"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "CACHEGRAPH_HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        wait_for(tmp_path / "busy")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("cachegraph: interrupted\n")


HARNESS = """\
import sys, time, types
from pathlib import Path
harness = types.ModuleType("lm_eval.__main__")
def cli_evaluate():
    Path(sys.argv[1]).write_text("")
    time.sleep(600)
harness.cli_evaluate = cli_evaluate
sys.modules |= {"lm_eval": types.ModuleType("lm_eval"), "lm_eval.__main__": harness}
import cachegraph.evaluation.harness.__main__ as command
command.import_module = lambda _: None
command.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_the_harness_ends_by_the_same_signals_with_the_same_codes(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", HARNESS, str(tmp_path / "busy")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "busy")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (code, "", "cachegraph: interrupted\n")
