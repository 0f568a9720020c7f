"""Numbers of the story translator beyond story-relay's own: other texts and readers, fewer layers, trained receivers.

Each part prints the commands that it runs, their tables, and paired differences. Trainings are kept in OUT and not
repeated.

    python benchmarks/story_variants.py --data-folder DATA --out OUT [--part facts|answers|question|depth|tuned]

DATA holds mctest.{train,dev}.jsonl and dream.{train,dev}.jsonl: context, question, choices, answer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rich
from fact_paragraphs import write_rows
from study import RECIPES, run_parts, train

from cachegraph import Comparison, Graph, compare
from cachegraph.evaluation.stats import bootstrap_means, interval

METRICS = ("accuracy", "answer_logprob")
SHIPPED = "smollm2-135m-instruct--gemma-3-270m--story"
DEPTH = {
    "fuser.start": SHIPPED,
    "fuser.layers": list(range(9)),
    "fuser.ridge.tokens": 24_000,
    "data.dev": ["dream.dev.jsonl"],  # the start was trained on nearly all texts of the sources
    "optim.steps": 1,  # of a warm-up: the fit alone
    "judge.rows": 96,
}
FURTHER = {  # as recipes/train/story-question.yaml, for the reader without the question
    "fuser.start": SHIPPED,
    "data.dev": ["dream.dev.jsonl"],
    "loss.next_token": 0.25,
    "loss.choices": 6,
    "loss.temperature": 6,
    "optim.steps": 160,
    "optim.texts": 8,
    "optim.rows": 1,
    "optim.learning_rate": 5e-5,
    "optim.warmup": 10,
    "judge.every": 160,
    "judge.rows": 300,
}
TUNED = {  # a prefix is trained directly, not through a network: it is done far sooner
    "optim.steps": 300,
    "optim.learning_rate": 4e-3,
    "optim.warmup": 10,
    "judge.every": 100,
}


def settings(changes: Mapping[str, object]) -> list[str]:
    """Changes to a training recipe as arguments of `cachegraph train`."""
    texts = (f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items())
    return [part for each in texts for part in ("--set", each)]


def run(recipe: str, rows: Path, variants: Sequence[str], out: Path, limit: int | None = None) -> Comparison:
    drawn = "" if limit is None else f" --limit {limit}"
    print(
        f"$ cachegraph compare recipes/{recipe}.yaml --data {rows}{drawn} --variants {','.join(variants)}", flush=True
    )
    with Graph.from_yaml(RECIPES / f"{recipe}.yaml", allow_paths=True) as graph:
        found = compare(graph, rows, variants=variants, metrics=METRICS, limit=limit, out=out)
    rich.print(found.table())
    return found


def paired(found: Comparison, first: str, others: Comparison, second: str) -> None:
    """Print the mean difference of two variants over the same questions, those about one text drawn together."""
    groups = [example.group for example in found.examples]
    for metric in METRICS:
        one, other = (
            {record.index: record.metrics[metric] for record in each.records_of(name)}
            for each, name in ((found, first), (others, second))
        )
        differences = np.array([[one[example.index] - other[example.index]] for example in found.examples])
        low, high = interval(bootstrap_means(differences, 0, groups=groups)[:, 0])
        print(f"{first} minus {second}, {metric}: {differences.mean():+.3f} ({low:.3f} to {high:.3f})")


def facts(_: Path, out: Path) -> None:
    write_rows(out / "facts.jsonl", paragraphs=40, seed=0)
    run("story-relay", out / "facts.jsonl", ["cache", "mismatched", "floor", "ceiling", "text"], out / "facts")


def answers(data: Path, out: Path) -> None:
    variants = ["cache", "mismatched", "text", "floor"]
    run("story-quiz", data / "mctest.dev.jsonl", variants, out / "answers", limit=160)


def question(data: Path, out: Path) -> None:
    """A reader that knows the question, against the shipped translator, whose reader does not, as it ships and after
    as many further steps.
    """
    made = train("story-question", data, out / "question-fuser", "--seed", "1")
    rows = data / "mctest.dev.jsonl"
    found = run("story-question", rows, [f"cache@{made}", f"mismatched@{made}"], out / "question")
    further = train("story-relay", data, out / "further", "--seed", "1", *settings(FURTHER))
    others = run("story-relay", rows, ["cache", f"cache@{further}", f"mismatched@{further}"], out / "shipped")
    for each in ("cache", f"cache@{further}"):
        paired(found, f"cache@{made}", others, each)


def depth(data: Path, out: Path) -> None:
    """A translator of the sharer's first nine layers, fitted to the shipped one in closed form."""
    made = train("story-relay", data, out / "first-nine", *settings(DEPTH))
    variants = ["cache", f"cache@{made}", f"mismatched@{made}"]
    found = run("story-relay", data / "mctest.dev.jsonl", variants, out / "depth", limit=160)
    paired(found, f"cache@{made}", found, "cache")


def tuned(data: Path, out: Path) -> None:
    """The receiver's own model, trained on the same rows: a translator with itself, and a prefix before the words."""
    itself = train("story-relay", data, out / "identical", "--control", "identical")
    prefix = train("story-relay", data, out / "tuned", "--control", "tuned", *settings(TUNED))
    variants = ["cache", "mismatched", f"identical@{itself}", f"tuned@{prefix}", "ceiling", "floor"]
    found = run("story-relay", data / "mctest.dev.jsonl", variants, out / "tuned-compare")
    for each in (f"identical@{itself}", f"tuned@{prefix}"):
        paired(found, "cache", found, each)
        paired(found, each, found, "ceiling")


if __name__ == "__main__":
    run_parts(__doc__, {"facts": facts, "answers": answers, "question": question, "depth": depth, "tuned": tuned})
