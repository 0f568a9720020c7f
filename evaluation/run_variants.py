"""Playing every example of every variant, some at a time, each result kept as soon as it is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import anyio

from cachegraph.common.run_all import run_all
from cachegraph.graph.data.examples import Example

from .peak_memory import PeakMemory
from .records import ExampleRecord
from .results_file import ResultsFile
from .run_example import Play, play

__all__ = ["Progress", "Round", "play_rounds"]


class Progress(NamedTuple):
    """How far a comparison is: results there are, results there will be, and how many of them this call has made.

    `refused`: by variant that can't run, why; known before the first result.
    """

    variant: str
    seed: int
    done: int
    total: int
    made: int
    refused: Mapping[str, str] = {}


@dataclass(frozen=True)
class Round:
    """One variant with one seed; `partners` has an entry an example."""

    how: Play
    partners: Sequence[Example] | None

    @property
    def variant(self) -> str:
        return self.how.variant

    async def play(self, examples: Sequence[Example], place: int) -> ExampleRecord:
        """The record of one example."""
        return await play(self.how, examples[place], self.partners[place] if self.partners is not None else None)

    def missing(self, examples: Sequence[Example], journal: ResultsFile) -> list[int]:
        """The places of the examples that have no record yet."""
        has = journal.records
        return [at for at, each in enumerate(examples) if (self.how.variant, self.how.seed, each.index) not in has]


async def play_rounds(
    rounds: Sequence[Round],
    examples: Sequence[Example],
    journal: ResultsFile,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None,
    refused: Mapping[str, str],
) -> None:
    """Play what the journal does not hold yet. Raises what keeping a record raises; an example's own error is kept."""
    todo = [(each, each.missing(examples, journal)) for each in rounds]
    left = sum(len(places) for _, places in todo)
    total, made = len(rounds) * len(examples), 0

    def tell(current: Round) -> None:
        if on_progress is not None:
            on_progress(Progress(current.variant, current.how.seed, total - left + made, total, made, refused))

    def keep(current: Round, record: ExampleRecord) -> None:
        nonlocal made
        journal.add(record)
        made += 1
        tell(current)

    if first := next(((each, places[0]) for each, places in todo if places), None):
        await first[0].play(examples, first[1])  # not counted: a model's first run is slower than all others
    for each, places in todo:
        tell(each)
        await _play_places(each, examples, places, concurrency, keep)


async def _play_places(
    current: Round,
    examples: Sequence[Example],
    places: Sequence[int],
    concurrency: int,
    keep: Callable[[Round, ExampleRecord], None],
) -> None:
    peak = PeakMemory()

    async def work(place: int) -> None:
        record = await current.play(examples, place)
        record.memory = peak.look()
        keep(current, record)

    failed: Exception | None = None
    async with anyio.create_task_group() as watching:
        watching.start_soon(peak.keep_looking)
        try:
            await run_all([partial(work, place) for place in places], concurrency)
        except Exception as error:  # raised below, without the group around it
            failed = error
        watching.cancel_scope.cancel()
    if failed is not None:
        raise failed
