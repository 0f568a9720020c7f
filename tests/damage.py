"""Damage of every kind to what lies on a disk: to bytes, to JSON, to the values of a database."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fuzz_counts

from cachegraph.errors import CachegraphError

__all__ = ["Tally", "damage_bytes", "damage_file", "damage_json", "odd_value"]

ODD: list[Any] = [
    None, True, 0, -1, 7, 1 << 40, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "\0", "../../etc/passwd",
    "é\ud83d", "9" * 5000, [], {}, [[]], {"a": 1}, [None], ["x", 3], {"": {}}, -(1 << 63),
]  # fmt: skip
TEXTS = [
    b"",
    b"[" * 100_000,
    b"9" * 5000,
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe{}",
    b"\x00" * 40,
    b"{}",
    b'{"a":' * 20_000,
]


def odd_value(dice: Random) -> Any:
    return copy.deepcopy(dice.choice(ODD))


def damage_json(dice: Random, value: Any) -> Any:
    """The value with something odd put, taken away or renamed in one or two places."""
    value = copy.deepcopy(value)
    for _ in range(dice.randint(1, 2)):
        places = list(_places(value))
        if not places:
            return odd_value(dice)
        parent, key = dice.choice(places)
        match dice.randrange(4):
            case 0 if isinstance(parent, dict):
                parent[f"{key}{dice.choice('_x')}"] = parent.pop(key)
            case 1:
                del parent[key]
            case _:
                parent[key] = odd_value(dice)
    return value


def _places(value: Any) -> Any:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(inner)


def damage_bytes(dice: Random, raw: bytes) -> bytes:
    """Cut, overwritten, doubled, or something else altogether."""
    at = dice.randrange(len(raw) + 1)
    match dice.randrange(5):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + dice.randbytes(dice.randint(1, 40)) + raw[at + 20 :]
        case 2:
            return raw[:at] + raw[at // 2 :]
        case 3:
            near = min(at % 400, len(raw))  # headers lie at the beginning
            return raw[:near] + dice.randbytes(dice.randint(1, 8)) + raw[near + 8 :]
        case _:
            return dice.choice(TEXTS)


def damage_file(dice: Random, file: Path) -> None:
    raw = file.read_bytes()
    if file.suffix == ".json" and dice.random() < 0.7:
        file.write_text(json.dumps(damage_json(dice, json.loads(raw))), encoding="utf-8")
    elif dice.random() < 0.05:
        file.unlink()
    elif dice.random() < 0.05:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(damage_bytes(dice, raw))


class Tally:
    """Tries damaged things for some seconds, counts what came of it, and fails on any error but our own."""

    def __init__(self, name: str, seconds: float = 4.0):
        self._name, self._end = name, time.monotonic() + fuzz_counts.seconds(seconds)
        self.tried = self.fine = self.refused = 0

    @property
    def goes_on(self) -> bool:
        return self.tried < 5 or time.monotonic() < self._end

    def attempt(self, work: Callable[[], object]) -> None:
        self.tried += 1
        try:
            work()
        except CachegraphError as error:
            said = str(error)
            assert said, f"{type(error).__name__} says nothing"  # noqa: PT017
            self.refused += 1
        else:
            self.fine += 1

    def print(self) -> None:
        fuzz_counts.report(self._name, {"refused in a sentence": self.refused, "read all the same": self.fine})
