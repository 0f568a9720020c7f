"""Files from elsewhere with any damage: a sentence or a correct load, never another library's error or a full memory.

Hypothesis draws the damage, the same in every run: `derandomize`.
"""

import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from fuzz_counts import cases, report
from gguf_files import SIZES, made, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from cachegraph.agents.sessions import session_files
from cachegraph.agents.sessions.session_caches import take_up
from cachegraph.engine.catalogue.convert_gguf import convert_gguf
from cachegraph.engine.catalogue.gguf_header import check_header
from cachegraph.errors import CachegraphError, FuserError, InputError, ModelError
from cachegraph.training import checkpoint
from cachegraph.training.checkpoint import CheckpointState

QUICK = settings(
    max_examples=cases(50),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
REFUSED = "refused in a sentence"
COUNTED = {
    "test_a_damaged_gguf_header_is_told_or_lets_the_library_read_it": "GGUF headers",
    "test_a_damaged_session_is_told_or_read": "sessions",
    "test_a_damaged_checkpoint_is_passed_over_told_or_restored": "checkpoints",
}
MOST_BYTES = 64_000_000  # that one case may allocate
SMALL: dict[str, Any] = {**SIZES, "hidden_size": 8, "intermediate_size": 8}
Damage = Callable[[bytes], bytes]
HUGE = [0, 1, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Cut, flip a bit, put a huge number or odd bytes somewhere, double a piece. Places are parts of the whole."""
    kind = draw(st.sampled_from(("cut", "flip", "number", "bytes", "double")))
    part = draw(st.floats(0, 1, exclude_max=True))
    near = draw(st.booleans())  # headers lie at the beginning
    bit = draw(st.integers(0, 7))
    number = struct.pack("<Q", draw(st.sampled_from(HUGE)))[: draw(st.sampled_from((4, 8)))]
    odd = draw(st.binary(min_size=1, max_size=12))

    def damage(raw: bytes) -> bytes:
        at = int(part * (min(len(raw), 400) if near else len(raw)))
        match kind:
            case "cut":
                return raw[:at]
            case "flip":
                return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] if raw else raw
            case "number":
                return raw[:at] + number + raw[at + len(number) :]
            case "bytes":
                return raw[:at] + odd + raw[at + len(odd) :]
            case _:
                return raw[:at] + raw[at // 2 :]

    return damage


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MOST_BYTES


def tell(error: CachegraphError, words: str) -> None:
    """The refusal is a sentence with these words."""
    assert words in str(error)


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    return write_gguf(
        made(LlamaConfig(**{**SIZES, "hidden_size": 8, "intermediate_size": 8})), "llama", path
    ).read_bytes()


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """Count here how the examples of a test end."""
    found = Counter[str]()
    yield found
    report(COUNTED[request.node.originalname], found)


@settings(QUICK, max_examples=cases(30))
@given(damage=damages())
def test_a_damaged_gguf_header_is_told_or_lets_the_library_read_it(
    whole_gguf: bytes, damage: Damage, tmp_path: Path, ends: Counter[str]
) -> None:
    """What passes the check, the library reads or refuses soon, and in little memory."""
    path = tmp_path / "x.gguf"
    path.write_bytes(damage(whole_gguf) or b"GGUF")
    with little_memory():
        try:
            check_header(path)
        except ModelError as error:
            tell(error, repr(str(path)))
            ends[REFUSED] += 1
            return
        ends["left to the library"] += 1
        try:
            gguf.GGUFReader(path)
        except (ValueError, KeyError, IndexError, OverflowError, TypeError):  # which `convert_gguf` tells
            return


@pytest.mark.parametrize("kind", range(13))
def test_a_header_that_states_more_than_the_file_has_is_refused_at_once(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    values = {8: struct.pack("<IQ", 8, 1 << 60), 9: struct.pack("<IIQ", 9, 6, 1 << 60)}
    path.write_bytes(head + values.get(kind, struct.pack("<IIQ", 9, kind, 1 << 40)))
    with little_memory(), pytest.raises(ModelError, match="is damaged: .*; fetch it again"):
        convert_gguf(path, tmp_path / "out", lambda _: None, lambda *_: None)
    for tensors, fields in ((1 << 60, 0), (0, 1 << 60), (1, 0)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields))
        with pytest.raises(ModelError, match="is damaged"):
            check_header(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 1 << 30), ("embedding_length", 1 << 30), ("feed_forward_length", 1 << 31),
     ("context_length", 1 << 31), ("attention.head_count", 1 << 30), ("vocab_size", 1 << 31)],
)  # fmt: skip
def test_metadata_of_another_size_than_the_weights_fill_no_memory(key: str, value: int, tmp_path: Path) -> None:
    """Refused, or, where the number shapes no weights, converted."""
    path = tmp_path / "x.gguf"
    write_gguf(made(LlamaConfig(**SMALL)), "llama", path)
    raw = path.read_bytes()
    name = f"llama.{key}".encode()
    at = raw.index(name) + len(name) + 4
    path.write_bytes(raw[:at] + struct.pack("<I", value) + raw[at + 4 :])
    with little_memory():
        try:
            convert_gguf(path, tmp_path / "out", lambda _: None, lambda *_: None)
        except ModelError as error:
            tell(error, repr(str(path)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


JSONS = st.recursive(
    st.none() | st.booleans() | st.sampled_from([-1, 1 << 70, 1.5, "", "x", "\0", "../../x", "9" * 50]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "file", ""]), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in places(value[key])]


@QUICK
@given(damage=damages() | st.none(), odd=JSONS, where=st.integers(0, 1000), spoil_cache=st.booleans())
def test_a_damaged_session_is_told_or_read(
    home: Path, damage: Damage | None, odd: Any, where: int, spoil_cache: bool, ends: Counter[str]
) -> None:
    """Bytes of the text and of a cache, or a value of the text that is of another kind."""
    raw = b'{"a": 1}' * 20
    cache = session_files.KeptCache(file="a-0.safetensors", sha256=sha256(raw).hexdigest())
    exchange = session_files.Exchange(messages=[("user", "hi")], reply="yes")
    agent = session_files.AgentRecord(exchanges=[exchange], cache=cache)
    with session_files.taken("ann") as folder:
        session_files.write(session_files.SessionRecord(session="ann", graph="g", agents={"a": agent}))
        file, kept = folder / session_files.TEXT, folder / cache.file
        text = file.read_bytes()
        kept.write_bytes(damage(raw) if damage is not None and spoil_cache else raw)
        if damage is not None and not spoil_cache:
            file.write_bytes(damage(text))
        elif damage is None:
            value = json.loads(text)
            inner, key = (found := places(value))[where % len(found)]
            inner[key] = odd
            file.write_text(json.dumps(value))
        with little_memory():
            try:
                record = session_files.read("ann")
            except InputError as error:
                tell(error, "the session 'ann' can't be read")
                ends[REFUSED] += 1
                return
            ends["read all the same"] += 1
            assert record is not None
            for each in record.agents.values():
                found_cache = take_up(folder, each, None)  # type: ignore[arg-type]  # no such file reaches a model
                assert found_cache.kv is None
    session_files.sweep()


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("run")
    network, optimizer = network_and_optimizer()
    network(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    folder = checkpoint.save(run, CheckpointState(recipe="r", step=1), network, optimizer)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def network_and_optimizer() -> tuple[torch.nn.Module, torch.optim.AdamW]:
    network = torch.nn.Linear(3, 3)
    return network, torch.optim.AdamW(network.parameters())


@QUICK
@given(damage=damages(), name=st.sampled_from(["weights.safetensors", "optimizer.safetensors", "state.json"]),
       signed=st.booleans(), odd=JSONS, where=st.integers(0, 100))  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_told_or_restored(
    whole_checkpoint: dict[str, bytes],
    damage: Damage,
    name: str,
    signed: bool,
    odd: Any,
    where: int,
    tmp_path: Path,
    ends: Counter[str],
) -> None:
    """`signed`: with right hashes, as whoever made it on purpose would."""
    folder = tmp_path / "run" / "step-000001"
    folder.mkdir(parents=True, exist_ok=True)
    files = {**whole_checkpoint, name: damage(whole_checkpoint[name])}
    if signed:
        state = json.loads(whole_checkpoint["state.json"])
        hashes = {each: sha256(files[each]).hexdigest() for each in files if each != "state.json"}
        state["sha256"] = hashes
        if name == "state.json":
            inner, key = (found := places(state))[where % len(found)]
            inner[key] = odd
        files["state.json"] = json.dumps(state).encode()
    for each, raw in files.items():
        (folder / each).write_bytes(raw)
    with little_memory():
        found_one = checkpoint.newest(tmp_path / "run")
        if found_one is None:
            ends["passed over"] += 1
            return
        assert isinstance(found_one[1].step, int)
        try:
            checkpoint.restore(folder, *network_and_optimizer())
        except FuserError as error:
            tell(error, "start over with --restart")
            ends[REFUSED] += 1
        else:
            ends["restored"] += 1
