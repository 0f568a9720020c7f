"""Models that an earlier version of the conversion left in the store."""

import json
import shutil
from pathlib import Path

from cachegraph.engine.catalogue import find, pull
from cachegraph.engine.catalogue.conversions import CONVERSION
from cachegraph.engine.spec import ModelSpec

SMOLLM2 = "smollm2-135m-instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def record(folder: Path, **changed: object) -> None:
    file = folder / "cachegraph.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**kept, **changed}))


def test_the_tokenizer_of_the_demo_model_is_mended_once(home: Path) -> None:
    folder = home / "models" / SMOLLM2
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({"pre_tokenizer": BYTES, "model": {"vocab": {"é": 0}}}))
    key = f"sha256:{SHA256}"
    record(folder, name=SMOLLM2, key=key, identity=f"{SMOLLM2}@{key}", source="wheel", sha256=SHA256)
    for _ in range(2):
        assert find(ModelSpec(source=SMOLLM2))
        mended = json.loads(file.read_text(encoding="utf-8"))
        assert mended == {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]},
            "model": {"vocab": {"é": 0}},
        }
        assert json.loads((folder / "cachegraph.json").read_text())["conversion"] == CONVERSION


def test_a_file_that_an_earlier_version_converted_is_converted_again(tiny_gguf: Path, tmp_path: Path) -> None:
    spec = ModelSpec(source=str(shutil.copy(tiny_gguf, tmp_path / "m.gguf")))
    folder = pull(spec).folder
    assert find(spec)
    record(folder, conversion=1)
    assert find(spec) is None
    (folder / "tokenizer.json").write_text("{}")
    assert pull(spec).folder == folder
    assert "vocab" in json.loads((folder / "tokenizer.json").read_text())["model"]
    assert find(spec)


def test_what_no_file_was_converted_to_stays_as_it_is(tiny_gguf: Path, tmp_path: Path) -> None:
    spec = ModelSpec(source=str(shutil.copy(tiny_gguf, tmp_path / "m.gguf")))
    folder = pull(spec).folder
    kept = json.loads((folder / "tokenizer.json").read_text())
    gemma = {**kept, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}}
    (folder / "tokenizer.json").write_text(json.dumps(gemma))
    record(folder, conversion=1)
    assert find(spec)
    assert json.loads((folder / "tokenizer.json").read_text()) == gemma
