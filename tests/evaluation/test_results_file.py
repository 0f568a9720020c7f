import errno
import json
from pathlib import Path
from typing import Any

import pytest

from cachegraph.errors import CachegraphError, ConfigError, InputError
from cachegraph.evaluation.records import ExampleRecord
from cachegraph.evaluation.results_file import ResultsFile


def record(index: int, **more: Any) -> ExampleRecord:
    return ExampleRecord(variant="text", seed=0, index=index, reply=f"reply {index}\nwith ünïcode\u2028", **more)


def written(path: Path, *records: ExampleRecord) -> Path:
    results_file = ResultsFile(path, "k1", {"environment": {}})
    for each in records:
        results_file.add(each)
    results_file.close()
    return path


def test_what_was_added_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "r.jsonl", record(0), record(1))
    results_file = ResultsFile(path, "k1", {})
    assert list(results_file.records.values()) == [record(0), record(1)]
    results_file.close()
    assert len(path.read_text(encoding="utf-8").split("\n")) == 4  # a header, two results, and no second header


def test_a_result_is_in_the_file_as_soon_as_it_is_added(tmp_path: Path) -> None:
    results_file = ResultsFile(tmp_path / "r.jsonl", "k1", {})
    results_file.add(record(0))
    assert json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8").split("\n")[1])["index"] == 0
    results_file.close()


@pytest.mark.parametrize("torn", range(1, 40, 7))
def test_a_last_line_that_was_torn_is_dropped_and_the_rest_kept(tmp_path: Path, torn: int) -> None:
    path = written(tmp_path / "r.jsonl", record(0), record(1))
    path.write_bytes(path.read_bytes()[:-torn])
    again = written(path, record(2))
    results_file = ResultsFile(again, "k1", {})
    assert [each.index for each in results_file.records.values()] == [0, 2]
    results_file.close()


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    results_file = ResultsFile(written(path, record(0)), "k1", {})
    assert len(results_file.records) == 1
    results_file.close()


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    results_file = ResultsFile(written(tmp_path / "r.jsonl", record(0, error="broken"), record(1)), "k1", {})
    assert [each.index for each in results_file.records.values()] == [1]
    results_file.close()


def test_results_of_another_comparison_are_not_mixed_in(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record(0))
    before = path.read_bytes()
    results_file = ResultsFile(path, "k2other-key", {})
    assert results_file.path == tmp_path / "r-k2other-.jsonl"
    assert not results_file.records
    results_file.add(record(5))
    results_file.close()
    assert path.read_bytes() == before
    again = ResultsFile(path, "k2other-key", {})
    assert [each.index for each in again.records.values()] == [5]
    again.close()


@pytest.mark.parametrize("text", ["my notes\n", "my notes", '{"question": "Why?"}\n', '["list"]\n'])
def test_somebodys_own_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="not a results file"):
        ResultsFile(path, "k1", {})
    assert path.read_text() == text


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record(0))
    path.write_bytes(path.read_bytes() + b'{"kind": "other"}\n')
    with pytest.raises(InputError, match="line 3: this version can't read this result"):
        ResultsFile(path, "k1", {})


def test_a_full_disk_is_one_sentence_and_what_is_finished_stays(tmp_path: Path) -> None:
    results_file = ResultsFile(tmp_path / "r.jsonl", "k1", {})
    results_file.add(record(0))
    opened = results_file._file
    assert opened is not None
    file = opened

    class Full:
        def write(self, line: str) -> None:
            file.write(line[:10])
            file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            file.close()

    results_file._file = Full()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="No space left on device; finished results stay there"):
        results_file.add(record(1))
    results_file.close()
    again = ResultsFile(tmp_path / "r.jsonl", "k1", {})
    assert [each.index for each in again.records.values()] == [0]
    again.close()


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CachegraphError, match="can.t be (read|written)"):
        ResultsFile(tmp_path / "file" / "r.jsonl", "k1", {})
