"""Agents that are Python functions: what they are given, what becomes of what they return, how they fail."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel, Field

from cachegraph.agents.base import Delivery, Reply, Turn
from cachegraph.agents.functions.agent import FunctionAgent
from cachegraph.agents.functions.import_function import find_function, name_of
from cachegraph.channels.payload import Payload, Route
from cachegraph.channels.spec import TextEdge
from cachegraph.errors import ConfigError, InputError, RecipeError, RunError

pytestmark = pytest.mark.anyio


class Ticket(BaseModel):
    kind: str
    stars: Annotated[int, Field(ge=1, le=5)] = 3


async def take(function: Callable[..., Any], *messages: Payload, **inputs: Any) -> Reply:
    senders = [message.sender for message in messages]
    agent = FunctionAgent("f", "steps:f", function, Path(), inputs=list(inputs), upstream=senders)
    await agent.open()
    deliveries = [Delivery(Route(TextEdge(sender=m.sender, receiver="f"), "text"), m) for m in messages]
    return await agent.turn(Turn(inputs, deliveries))


async def test_inputs_and_messages_come_by_name() -> None:
    def join(question: str, writer: str, tone: str = "calm") -> str:
        return f"{question}|{writer}|{tone}"

    reply = await take(join, Payload("writer", "words"), question="why?", other="not asked for")
    assert (reply.payload.text, reply.payload.data) == ("why?|words|calm", None)
    assert reply.edges["writer"].bytes == 5


async def test_an_async_function_is_awaited_where_it_is() -> None:
    async def where(question: str) -> str:
        await anyio.lowlevel.checkpoint()
        return threading.current_thread().name + question

    assert (await take(where, question="?")).payload.text == threading.current_thread().name + "?"


async def test_a_plain_function_runs_off_the_event_loop() -> None:
    def where() -> str:
        return threading.current_thread().name

    assert (await take(where)).payload.text != threading.current_thread().name


@pytest.mark.parametrize(
    ("hint", "message", "got"),
    [
        (str, Payload("a", "3"), "3"),
        (int, Payload("a", "3"), 3),
        (list[int], Payload("a", "[1, 2]"), [1, 2]),
        (Ticket, Payload("a", '{"kind": "x"}'), Ticket(kind="x")),
        (Ticket, Payload("a", "a ticket", data={"kind": "y", "stars": 5}), Ticket(kind="y", stars=5)),
        (dict[str, int], Payload("a", "words", data={"n": 1}), {"n": 1}),
        (str, Payload("a", "words", data={"n": 1}), "words"),
        (Any, Payload("a", "words", data={"n": 1}), {"n": 1}),
        (str | None, Payload("a", "3"), "3"),
    ],
)
async def test_an_argument_is_made_of_a_message_as_its_type_says(hint: Any, message: Payload, got: Any) -> None:
    def f(a: hint) -> str:
        seen.append(a)
        return ""

    seen: list[Any] = []
    await take(f, message)
    assert seen == [got]
    assert type(seen[0]) is type(got)


async def test_a_wrong_argument_is_named_with_its_field() -> None:
    def f(ticket: Ticket) -> None: ...

    with pytest.raises(InputError, match=r"'ticket.stars' is not what the function 'steps:f' takes: .* less than or"):
        await take(f, Payload("ticket", '{"kind": "x", "stars": 9}'))
    with pytest.raises(InputError, match="'ticket' is not what"):
        await take(f, Payload("ticket", "no JSON"))


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "text", "data"),
    [
        ("words", "words", None),
        (None, "", None),
        (3, "3", 3),
        ({"ä": [1, None]}, '{"ä": [1, null]}', {"ä": [1, None]}),
        (Ticket(kind="x"), '{"kind": "x", "stars": 3}', {"kind": "x", "stars": 3}),
        ([Point(1)], '[{"x": 1}]', [{"x": 1}]),
    ],
)
async def test_what_is_returned_becomes_text_and_data(value: Any, text: str, data: Any) -> None:
    reply = await take(lambda: value)
    assert (reply.payload.text, reply.payload.data) == (text, data)


async def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(RunError, match="returned object, which is neither text nor a JSON value"):
        await take(lambda: object())


async def test_an_error_inside_names_the_function() -> None:
    def f() -> None:
        raise ValueError("no luck")

    with pytest.raises(RunError, match="the function 'steps:f' raised ValueError: no luck") as caught:
        await take(f)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_timeout_does_not_wait_for_a_function_that_hangs() -> None:
    held = threading.Event()
    try:
        with anyio.fail_after(60), anyio.move_on_after(0.05) as scope:
            await take(lambda: held.wait(20))
        assert scope.cancelled_caught
    finally:
        held.set()


async def test_a_parameter_that_nobody_fills_is_refused_on_opening() -> None:
    def f(anwser: str) -> None: ...

    with pytest.raises(RecipeError, match="takes 'anwser', which is neither an input nor an agent.*there is 'answer'"):
        await take(f, answer="x")
    with pytest.raises(RecipeError, match="takes 'args' by position only"):
        await take(lambda *args: "", answer="x")


async def test_keyword_arguments_take_all_the_rest() -> None:
    reply = await take(lambda a, **rest: {"a": a, **rest}, Payload("b", "2", data=2), a="1", c="3")
    assert reply.payload.data == {"a": "1", "b": 2, "c": "3"}


async def test_a_partial_and_a_callable_object_will_do() -> None:
    class Shout:
        def __call__(self, word: str) -> str:
            return word.upper()

    assert (await take(Shout(), word="hey")).payload.text == "HEY"
    assert (await take(partial(lambda word, end: word + end, end="!"), word="hey")).payload.text == "hey!"


def test_a_function_is_found_in_a_module_and_in_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text("class Tools:\n    @staticmethod\n    def count(text: str): return len(text)\n")
    assert find_function("steps.py:Tools.count", "f", tmp_path)("abc") == 3
    assert find_function("json:dumps", "f", tmp_path)([1]) == "[1]"
    assert name_of(find_function) == "cachegraph.agents.functions.import_function:find_function"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no_such_module_here:f", "can't be imported: No module named"),
        ("json:no_such", "is not there: module 'json' has no attribute"),
        ("json:__name__", "is not a function but str"),
        ("absent.py:f", "can't be read: No such file"),
        ("broken.py:f", "can't be imported: ZeroDivisionError in broken.py: division by zero"),
        ("wrong.py:f", "can't be imported: SyntaxError in wrong.py: "),
        ("exits.py:f", "can't be imported: SystemExit in exits.py: 3"),
        ("panics.py:f", "can't be imported: PanicException in panics.py: a Rust extension"),
        ("lacks.py:f", "can't be imported: No module named 'no_such_module_here'"),
        ("deep.py:f", "can't be imported: RecursionError in deep.py"),
        ("bytes.py:f", "can't be imported: SyntaxError in bytes.py"),
        (".:f", "can't be imported"),
    ],
)
def test_a_function_that_is_not_there_says_why(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "panics.py").write_text(
        "class PanicException(BaseException): ...\nraise PanicException('a Rust extension')"
    )
    (tmp_path / "lacks.py").write_text("import no_such_module_here\n")
    (tmp_path / "deep.py").write_text("def f(): f()\nf()\n")
    (tmp_path / "bytes.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(ConfigError, match=why):
        find_function(path, "f", tmp_path)


def test_agents_of_one_slow_file_opened_at_once_get_one_module_that_has_run(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nran = []\nran.append(1)\ntime.sleep(0.1)\n"
        + "".join(f"def f{n}(): return ran\n" for n in range(8))
    )
    (tmp_path / "link.py").symlink_to(tmp_path / "slow.py")
    names = [f"{file}:f{n}" for n in range(8) for file in ("slow.py", "./slow.py", "link.py")]
    with ThreadPoolExecutor(len(names)) as pool:
        ran = [function() for function in pool.map(lambda name: find_function(name, "f", tmp_path), names)]
    assert all(each is ran[0] for each in ran)
    assert ran[0] == [1]


def test_a_file_that_fails_fails_for_everybody_and_can_be_mended(tmp_path: Path) -> None:
    file = tmp_path / "mended.py"
    file.write_text("import time\ntime.sleep(0.05)\n1 / 0\n")

    def failing(_: int) -> str:
        with pytest.raises(ConfigError) as failure:
            find_function("mended.py:f", "f", tmp_path)
        return str(failure.value)

    with ThreadPoolExecutor(4) as pool:
        assert all("ZeroDivisionError" in each for each in pool.map(failing, range(4)))
    file.write_text("def f(): return 'mended, and longer than before'\n")
    assert find_function("mended.py:f", "f", tmp_path)() == "mended, and longer than before"


def test_a_file_may_hold_dataclasses_and_what_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass P:\n    k: ClassVar[int] = 1\n    x: int = 2\ndef f(): return P()\n"
    )
    made = find_function("kinds.py:f", "f", tmp_path)()
    assert pickle.loads(pickle.dumps(made)) == made


def test_ctrl_c_while_a_file_runs_passes(tmp_path: Path) -> None:
    (tmp_path / "stops.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        find_function("stops.py:f", "f", tmp_path)


@pytest.mark.parametrize(
    ("returned", "data"),
    [
        ({"a\ud83d": "\ude00"}, {"a\ufffd": "\ufffd"}),
        (["\ud83d\ude00", ("\udce9",)], ["😀", ["\ufffd"]]),
        (Path("caf\udce9"), "caf\ufffd"),
        ({Path("\udce9"): {"\ud83d"}}, {"\ufffd\ufffd\ufffd": ["\ufffd"]}),
    ],
    ids=ascii,
)
async def test_half_characters_that_a_function_returns_are_mended(returned: Any, data: Any) -> None:
    reply = await take(lambda: returned)
    assert reply.payload.data == data
    assert reply.payload.text is not None
    assert reply.payload.text.encode()
