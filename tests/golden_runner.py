"""Runs recorded cases of the published implementation through our engine and measures the differences.

A case is a folder with case.json and tensors.safetensors; cases, models and checkpoints are looked for in the folder
that CACHEGRAPH_GOLDEN names, else in tests/golden. `python tests/golden_runner.py` prints a table.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import torch
from safetensors.torch import load_file
from torch import Tensor

from cachegraph.channels.cache.edge_plan import FusePlan
from cachegraph.channels.cache.fused_decode import FusedRow, ReplySharers, fused_generate
from cachegraph.channels.cache.fused_prefill import FusedPrefill, Sharer, fused_prefill
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt, SharerPrompt, Stretch
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, concat
from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.engine.spec import GenerateSpec

__all__ = ["GOLDEN", "Case", "RowRun", "case_names", "fuser", "model", "read_case", "run_case", "run_rows"]

HERE = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("CACHEGRAPH_GOLDEN", HERE))


def case_names() -> list[str]:
    return sorted(path.parent.name for path in (GOLDEN / "cases").glob("*/case.json"))


def _part(*names: str) -> Path:
    """A model or checkpoint beside the cases, or among ours."""
    there = GOLDEN.joinpath(*names)
    return there if there.exists() else HERE.joinpath(*names)


@cache
def model(name: str, dtype: str) -> LoadedModel:
    return load_model(_part("models", name), dtype=getattr(torch, dtype))


@cache
def fuser(name: str, dtype: str) -> Fuser:
    return load_fuser(_part("ckpt", name, "final"), dtype=getattr(torch, dtype))


@dataclass
class Case:
    """One recorded case. Model 0 is the receiver, model j the j-th sharer."""

    name: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return next(value.shape[0] for key, value in self.tensors.items() if key.startswith("input_ids"))

    @property
    def dtype(self) -> str:
        return str(self.about.get("dtype", "float32"))

    @property
    def sections(self) -> list[tuple[int, int]]:
        return [(mask, length) for mask, length in self.about["sections"]]

    @property
    def prefix(self) -> int:
        """Positions before the last section."""
        return sum(length for _, length in self.sections[:-1])

    @property
    def eos_ids(self) -> frozenset[int]:
        eos = self.about.get("generate_kwargs", {}).get("eos_token_id")
        return frozenset([eos] if isinstance(eos, int) else eos or [])

    def row(self, number: int, model: int) -> "RowInput":
        """What one model reads of one row, padding left out and its positions kept."""
        own = f".{model}" if self.about.get("per_model_inputs") else ""
        ids = self.tensors[f"input_ids{own}"][number]
        mask = self.tensors.get(f"attention_mask{own}", torch.ones(1, len(ids), dtype=torch.int64).expand(99, -1))
        kept = mask[number].nonzero().flatten()
        positions = self.tensors.get("position_ids", torch.arange(len(ids))[None].expand(99, -1))[number]
        return RowInput(ids[kept].tolist(), positions[kept], kept)

    def layers(self, name: str, number: int, columns: Tensor) -> list[Tensor]:
        """Recorded keys and values of all layers at some columns of a row, each (1, kv_heads, columns, head_dim)."""
        count = sum(key.startswith(f"{name}_k.") for key in self.tensors)
        return [
            self.tensors[f"{name}_{side}.{layer}"][number : number + 1, :, columns]
            for layer in range(count)
            for side in "kv"
        ]

    def reply(self, number: int) -> list[int]:
        """The recorded reply up to the end of sequence, which our engine does not give out."""
        chosen = self.tensors["gen_scores"][number].argmax(-1).tolist()
        recorded = self.about["generated"][number]
        end = next((at for at, id_ in enumerate(recorded) if chosen[at] in self.eos_ids), len(recorded))
        return list(recorded[:end])


@dataclass
class RowInput:
    ids: list[int]
    positions: Tensor
    columns: Tensor  # where in the padded row each token stands


@dataclass
class RowRun:
    """What we computed of one row, and how far it is from what was recorded: by name, the largest difference."""

    errors: dict[str, float] = field(default_factory=dict)
    reply: list[int] | None = None
    expected_reply: list[int] | None = None
    plain_reply: list[int] | None = None
    expected_plain_reply: list[int] | None = None
    fused: list[Tensor] = field(default_factory=list)

    def compare(self, name: str, ours: Sequence[Tensor], recorded: Sequence[Tensor]) -> None:
        assert [x.shape for x in ours] == [x.shape for x in recorded], name
        differences = [(a.double() - b.double()).abs() for a, b in zip(ours, recorded, strict=True) if a.numel()]
        self.errors[name] = max((float(difference.max()) for difference in differences), default=0.0)


def read_case(name: str) -> Case:
    folder = GOLDEN / "cases" / name
    return Case(name, json.loads((folder / "case.json").read_text()), load_file(folder / "tensors.safetensors"))


def run_case(case: Case) -> list[RowRun]:
    """All rows of a case, concurrently, through one engine a model."""
    return run_rows([(case, number) for number in range(case.rows)])


def run_rows(rows: Sequence[tuple[Case, int]]) -> list[RowRun]:
    """Rows of any cases of one number type, concurrently, through one engine a model."""
    return anyio.run(_run_rows, rows)


async def _run_rows(rows: Sequence[tuple[Case, int]]) -> list[RowRun]:
    runs = [RowRun() for _ in rows]
    engines: dict[tuple[str, frozenset[int]], Engine] = {}

    def engine(case: Case, name: str, eos_ids: frozenset[int] = frozenset()) -> Engine:
        if (name, eos_ids) not in engines:
            loaded = model(name, case.dtype)
            engines[name, eos_ids] = Engine(replace(loaded, info=replace(loaded.info, eos_ids=eos_ids)))
        return engines[name, eos_ids]

    try:
        async with anyio.create_task_group() as group:
            for (case, number), run in zip(rows, runs, strict=True):
                receiver, endless = (
                    engine(case, case.about["receiver"], case.eos_ids),
                    engine(case, case.about["receiver"]),
                )
                sharers = [engine(case, name) for name in case.about["sharers"]]
                group.start_soon(_run_row, case, number, run, receiver, endless, sharers)
    finally:
        for each in engines.values():
            each.close()
    return runs


async def _run_row(
    case: Case, number: int, run: RowRun, receiver: Engine, endless: Engine, sharers: list[Engine]
) -> None:
    await _alone(case, number, run, receiver, endless)
    reading = shared_reading(case, number)
    fusers = [fuser(name, case.dtype) for name in case.about["ckpts"]]
    together = [Sharer(engine, each) for engine, each in zip(sharers, fusers, strict=True)]
    fused = await fused_prefill(receiver, together, reading, case.about["fusion_mode"])
    if case.about["include_response"]:
        rest = await _respond(case, number, run, receiver, together, reading, fused)
    else:
        rest = await _decode(case, number, run, receiver, reading, fused.segments)
        for j, row in enumerate(fused.sharers, 1):
            _compare_sharer(case, number, run, j, row)
    own = case.row(number, 0)
    run.fused = _flat(rest)
    run.compare("fused", run.fused, case.layers("fused", number, own.columns))


async def _alone(case: Case, number: int, run: RowRun, receiver: Engine, endless: Engine) -> None:
    own = case.row(number, 0)
    done = await receiver.prefill(own.ids, positions=own.positions, logits="all")
    assert done.logits is not None
    run.compare("plain", _flat(done.segments), case.layers("plain", number, own.columns))
    run.compare("plain_logits", [done.logits], [case.tensors["plain_logits"][number, own.columns]])
    if (recorded := case.about.get("plain_generated")) is not None:
        wanted = GenerateSpec(max_new_tokens=len(recorded[number]))
        greedy = await endless.generate(own.ids, spec=wanted)  # transformers counts positions without padding
        run.plain_reply, run.expected_plain_reply = list(greedy.ids), recorded[number]


async def _decode(
    case: Case, number: int, run: RowRun, receiver: Engine, reading: SharedPrompt, segments: tuple[KV, ...]
) -> tuple[KV, ...]:
    done = sum(end - start for start, end, _ in reading.stretches)
    ids, positions = list(reading.ids[done:]), _rest(reading, done)
    last = await receiver.prefill(ids, segments, positions=positions, logits="all")
    assert last.logits is not None
    columns = case.row(number, 0).columns[done:] - case.prefix
    run.compare("prefill_logits", [last.logits], [case.tensors["prefill_logits"][number, columns]])
    if case.about.get("generated") is not None:
        spec = GenerateSpec(max_new_tokens=case.about["max_new_tokens"])
        reply = await receiver.generate(ids, segments, spec, positions=positions)
        run.reply, run.expected_reply = list(reply.ids), case.reply(number)
        assert (reply.finish == "eos") == (len(run.expected_reply) < len(case.about["generated"][number]))
        scores = [last.logits[-1], *await _scores(receiver, run.expected_reply[:-1], last.segments)]
        run.compare("scores", scores, list(case.tensors["gen_scores"][number, : len(scores)]))
    return last.segments


async def _scores(receiver: Engine, reply: list[int], segments: tuple[KV, ...]) -> list[Tensor]:
    """The logits behind each token of a reply, read one by one as they were decoded."""
    scores = []
    for token in reply:
        step = await receiver.prefill([token], segments, logits="last")
        assert step.logits is not None
        segments = step.segments
        scores.append(step.logits[-1])
    return scores


async def _respond(
    case: Case,
    number: int,
    run: RowRun,
    receiver: Engine,
    sharers: list[Sharer],
    reading: SharedPrompt,
    fused: FusedPrefill,
) -> tuple[KV, ...]:
    """The last section and the reply are corrected too; the published code lets the first sharer alone do that."""
    done = sum(end - start for start, end, _ in reading.stretches)
    ids, positions = list(reading.ids[done:]), _rest(reading, done)
    plan = FusePlan(sharers[0].engine, sharers[0].fuser, "ids", "receiver-prompt", True)
    along = ReplySharers([plan], fused.sharers[:1], fused.uncorrected)
    row = FusedRow(receiver, along, fused.segments)
    logits = await row.read(ids, positions)
    columns = case.row(number, 0).columns[done:] - case.prefix
    run.compare("prefill_logits", [logits], [case.tensors["prefill_logits"][number, columns]])
    _compare_sharer(case, number, run, 1, row.sharers[0])
    if case.about.get("generated") is not None:
        spec = GenerateSpec(max_new_tokens=case.about["max_new_tokens"])
        reply = await fused_generate(receiver, along, ids, fused.segments, spec, positions=positions)
        run.reply, run.expected_reply = list(reply.ids), case.reply(number)
    return row.segments


def shared_reading(case: Case, number: int) -> SharedPrompt:
    """The case's sections as stretches, all but the last."""
    own = case.row(number, 0)
    count = len(case.about["sharers"])
    others = [case.row(number, j) for j in range(1, count + 1)]
    readings = []
    for other in others:
        inside = int((other.columns < case.prefix).sum())
        readings.append(SharerPrompt(other.ids[:inside], other.positions[:inside]))
    stretches, begin, token = [], 0, 0
    for mask, length in case.sections[:-1]:
        here = own.columns[(own.columns >= begin) & (own.columns < begin + length)]
        pairs = {j: _pairs(here, other.columns) for j, other in enumerate(others) if mask > 0 and mask >> j & 1}
        if len(here):
            stretches.append(Stretch(token, token + len(here), {j: each for j, each in pairs.items() if len(each[0])}))
        token, begin = token + len(here), begin + length
    return SharedPrompt(own.ids, own.positions, readings, stretches)


def _pairs(here: Tensor, there: Tensor) -> Pairs:
    """Tokens that stand in the same column of both padded rows."""
    rows = {int(column): index for index, column in enumerate(there)}
    both = [(index, rows[int(column)]) for index, column in enumerate(here) if int(column) in rows]
    return Pairs(torch.tensor([a for a, _ in both]), torch.tensor([b for _, b in both]))


def _compare_sharer(case: Case, number: int, run: RowRun, j: int, row: tuple[KV, ...]) -> None:
    if f"dict_sharer{j}_k.0" not in case.tensors:
        return
    recorded = case.tensors[f"dict_sharer{j}_k.0"].shape[2]
    columns = case.row(number, j).columns
    run.compare(f"sharer{j}", _flat(row), case.layers(f"dict_sharer{j}", number, columns[columns < recorded]))


def _rest(reading: SharedPrompt, done: int) -> Tensor:
    assert reading.positions is not None
    return reading.positions[done:]


def _flat(segments: tuple[KV, ...]) -> list[Tensor]:
    return [tensor for layer in concat(segments).layers for tensor in layer]


def main() -> None:
    torch.set_num_threads(1)
    for name in case_names():
        case = read_case(name)
        if case.about.get("train"):
            continue
        for number, run in enumerate(run_case(case)):
            same = [run.reply == run.expected_reply, run.plain_reply == run.expected_plain_reply]
            print(f"{name}[{number}]", " ".join(f"{key}={value:.1e}" for key, value in run.errors.items()), *same)


if __name__ == "__main__":
    main()
