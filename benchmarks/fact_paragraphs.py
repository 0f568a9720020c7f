"""Write a set of paragraphs of invented facts with questions, to measure a story translator on texts of another kind.

    python benchmarks/fact_paragraphs.py OUT.jsonl [--paragraphs 60] [--seed 0]

Each paragraph describes two things of one sort by the same attributes, in plain sentences. A question asks for one
attribute of one of the two. Its choices are the right value, the other thing's value, and two that the paragraph does
not contain, so knowing which words occur gives 50 %. Rows have context, question, choices and answer, and the context's
two halves, one a thing, as first and second.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

__all__ = ["rows", "write_rows"]

YEARS = [str(year) for year in range(1742, 1990, 13)]
PEOPLE = ["Ada Brandt", "Luis Ferro", "Nora Quill", "Piotr Lang", "Hana Mori", "Omar Said", "Greta Holm", "Ivan Petrov"]
NAMES = [
    "Velo", "Marrick", "Tundal", "Oskby", "Ferrin", "Calder", "Brisk", "Norrin", "Hale", "Sorrel", "Dunmar", "Petra",
    "Lindel", "Quarry", "Arvid", "Kestrel",
]  # fmt: skip


@dataclass(frozen=True)
class Sort:
    """A sort of thing: by attribute a sentence, a question and the values; `{0}` is the thing, `{1}` a value."""

    title: str
    attributes: Mapping[str, tuple[str, str, Sequence[str]]]


SORTS = [
    Sort(
        "the {} Bridge",
        {
            "year": ("{0} was opened in {1}.", "In which year was {0} opened?", YEARS),
            "material": (
                "It is made of {1}.",
                "What is {0} made of?",
                ["steel", "granite", "brick", "oak", "concrete"],
            ),
            "architect": ("Its designer was {1}.", "Who designed {0}?", PEOPLE),
            "traffic": (
                "Today it carries {1}.",
                "What does {0} carry today?",
                ["trams", "bicycles", "freight trains", "walkers", "buses"],
            ),
        },
    ),
    Sort(
        "the island of {}",
        {
            "crop": (
                "On {0} farmers grow {1}.",
                "What do farmers on {0} grow?",
                ["barley", "olives", "potatoes", "tea", "grapes"],
            ),
            "people": (
                "About {1} people live there.",
                "How many people live on {0}?",
                ["ninety", "four hundred", "two thousand", "seven thousand", "sixty thousand"],
            ),
            "animal": (
                "It is known for its wild {1}.",
                "Which animal is {0} known for?",
                ["goats", "ponies", "parrots", "foxes", "tortoises"],
            ),
            "weather": (
                "The winters are {1}.",
                "What are the winters on {0} like?",
                ["dry", "foggy", "snowy", "windy", "mild"],
            ),
        },
    ),
    Sort(
        "the {} engine",
        {
            "fuel": ("{0} burns {1}.", "What does {0} burn?", ["coal", "wood", "diesel oil", "gas", "alcohol"]),
            "year": ("It was first built in {1}.", "In which year was {0} first built?", YEARS),
            "inventor": ("It was invented by {1}.", "Who invented {0}?", PEOPLE),
            "use": ("It drives {1}.", "What does {0} drive?", ["pumps", "looms", "ships", "mills", "tractors"]),
        },
    ),
    Sort(
        "the {} beetle",
        {
            "food": (
                "{0} eats {1}.",
                "What does {0} eat?",
                ["moss", "pollen", "dead leaves", "fungi", "other insects"],
            ),
            "colour": (
                "Its wings are {1}.",
                "Which colour are the wings of {0}?",
                ["green", "black", "orange", "blue", "white"],
            ),
            "home": (
                "It lives {1}.",
                "Where does {0} live?",
                ["under stones", "in hollow trees", "near ponds", "in sand dunes", "in caves"],
            ),
            "season": (
                "It lays its eggs in {1}.",
                "When does {0} lay its eggs?",
                ["March", "May", "July", "September", "November"],
            ),
        },
    ),
    Sort(
        "the {} Museum",
        {
            "things": ("{0} shows {1}.", "What does {0} show?", ["clocks", "maps", "masks", "shells", "toys"]),
            "place": (
                "It is in {1}.",
                "Where is {0}?",
                ["an old mill", "a castle", "a railway station", "a lighthouse", "a school"],
            ),
            "head": ("It is led by {1}.", "Who leads {0}?", PEOPLE),
            "day": (
                "It is closed on {1}.",
                "On which day is {0} closed?",
                ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"],
            ),
        },
    ),
]


def rows(paragraphs: int, seed: int) -> list[dict[str, object]]:
    """Four questions about each paragraph, two about each thing."""
    dice = Random(seed)
    return [row for number in range(paragraphs) for row in _paragraph(SORTS[number % len(SORTS)], dice)]


def write_rows(file: Path, paragraphs: int, seed: int) -> None:
    """Write the rows as JSON Lines."""
    file.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(paragraphs, seed)), encoding="utf-8"
    )


def _paragraph(sort: Sort, dice: Random) -> list[dict[str, object]]:
    things = [sort.title.format(name) for name in dice.sample(NAMES, 2)]
    values = {name: dice.sample(list(pool), 4) for name, (_, _, pool) in sort.attributes.items()}
    first, second = (
        " ".join(
            _capital(sentence.format(thing, values[name][place])) for name, (sentence, _, _) in sort.attributes.items()
        )
        for place, thing in enumerate(things)
    )
    text = {"context": f"{first} {second}", "first": first, "second": second}
    asked = [
        *((name, 0) for name in dice.sample(list(values), 2)),
        *((name, 1) for name in dice.sample(list(values), 2)),
    ]
    found: list[dict[str, object]] = []
    for name, place in asked:
        choices = dice.sample(values[name], 4)
        question = sort.attributes[name][1].format(things[place])
        found.append({**text, "question": question, "choices": choices, "answer": choices.index(values[name][place])})
    return found


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--paragraphs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_rows(args.out, args.paragraphs, args.seed)


if __name__ == "__main__":
    main()
