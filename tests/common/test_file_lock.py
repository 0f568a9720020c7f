"""Files that one process alone may write."""

import subprocess
import sys
from pathlib import Path

import pytest

from cachegraph.cli.event_files import record_events
from cachegraph.errors import CachegraphError, InputError
from cachegraph.evaluation.results_file import ResultsFile


def test_two_on_one_results_file_are_told_and_nothing_is_doubled(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    first = ResultsFile(file, "k" * 64, {})
    before = file.read_bytes()
    for key in ("k" * 64, "k" * 64):
        with pytest.raises(
            InputError, match=r"r\.jsonl' is being written by another command; wait for it, or give --out"
        ):
            ResultsFile(file, key, {})
    other = ResultsFile(file, "o" * 64, {})  # another comparison has a file of its own
    assert other.path != file
    assert file.read_bytes() == before
    first.close()
    ResultsFile(file, "k" * 64, {}).close()
    other.close()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from cachegraph.evaluation.results_file import ResultsFile\n"
    code += "j = ResultsFile(Path(sys.argv[1]), 'k' * 64, {}); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.jsonl")], check=False)
    ResultsFile(tmp_path / "r.jsonl", "k" * 64, {}).close()


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000, '{"a":' * 20_000, "null", '"x"'])
def test_a_file_that_is_none_of_ours_is_left_alone(line: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="is not a results file of cachegraph"):
        ResultsFile(tmp_path / "r.jsonl", "k" * 64, {})
    assert (tmp_path / "r.jsonl").read_text() == line + "\n"


def test_two_runs_on_one_events_file_are_told_and_the_first_ones_events_stay(tmp_path: Path) -> None:
    events = tmp_path / "e.jsonl"
    events.write_text("of an earlier run\n")
    with record_events(events, None) as _:
        assert events.read_text() == ""
        events.write_text("x")
        with pytest.raises(CachegraphError, match="is being written by another command"), record_events(events, None):
            pass
        with pytest.raises(CachegraphError, match="is being written by another command"), record_events(None, events):
            pass
        assert events.read_text() == "x"
    with record_events(Path("/dev/null"), Path("/dev/null")):
        pass
