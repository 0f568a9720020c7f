"""Every number of the fuser that listens: training seeds, controls, a language left out, and what else was tried.

Each part prints the commands that it runs, and their tables. Trainings are kept in OUT and not repeated; one takes 6 to
20 minutes on one core.

    python benchmarks/foreign_words.py --data-folder DATA --out OUT [--part shipped|seeds|left-out|tried]

DATA holds words.train.jsonl and words.dev.jsonl: language, question, choices, answer.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from study import RECIPES, run_command, run_parts, train

RECIPE = "word-duo"
METRICS = ("-m", "accuracy", "-m", "answer_logprob")
SHORT = ("optim.steps=100",)  # trials are judged after 50 and 100 steps
TRIED = {
    "random-start": ("fuser.ridge=null",),
    "lean": ("fuser.ridge=null", "fuser.architecture=lean", 'fuser.params={"width": 128}', "optim.learning_rate=1e-3"),
    "as-shipped": (),
}


def compare(rows: Path, out: Path, variants: Sequence[str]) -> None:
    run_command("compare", str(RECIPES / f"{RECIPE}.yaml"), "--allow-paths", "--data", str(rows), "--variants",
        ",".join(variants), *METRICS, "-o", str(out))  # fmt: skip


def shipped(data: Path, out: Path) -> None:
    compare(data / "words.dev.jsonl", out / "shipped", ["cache", "mismatched", "zero", "alone", "text", "sharer"])


def seeds(data: Path, out: Path) -> None:
    fusers = [train(RECIPE, data, out / f"seed-{seed}", "--seed", str(seed)) for seed in (0, 1, 2)]
    tuned = train(RECIPE, data, out / "trained-on-zeros", "--control", "zero")
    variants = [f"{kind}@{fuser}" for kind in ("cache", "mismatched") for fuser in (*fusers, "mean")]
    compare(data / "words.dev.jsonl", out / "seeds", [*variants, f"zero@{tuned}", "alone"])


def left_out(data: Path, out: Path, language: str = "Polish") -> None:
    """A fuser that has seen no word of this language, on this language's words."""
    folder = out / f"no-{language}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, wanted in (("words.train.jsonl", False), ("words.dev.jsonl", True)):
        lines = (data / name).read_text(encoding="utf-8").splitlines(keepends=True)
        chosen = [line for line in lines if (json.loads(line)["language"] == language) == wanted]
        (folder / name).write_text("".join(chosen), encoding="utf-8")
    made = train(RECIPE, folder, folder / "fuser")
    compare(folder / "words.dev.jsonl", folder / "compared", [f"cache@{made}", f"mismatched@{made}", "cache", "alone"])


def tried(data: Path, out: Path) -> None:
    for name, settings in TRIED.items():
        made = train(
            RECIPE, data, out / f"tried-{name}", *(part for each in (*SHORT, *settings) for part in ("--set", each))
        )
        log = made.with_name(f"{made.name}.training") / "log.jsonl"
        for line in log.read_text(encoding="utf-8").splitlines():
            if (record := json.loads(line))["kind"] == "judgement":
                print(name, json.dumps(record))


if __name__ == "__main__":
    run_parts(__doc__, {"shipped": shipped, "seeds": seeds, "left-out": left_out, "tried": tried})
