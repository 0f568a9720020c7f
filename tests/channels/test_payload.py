"""Replies that are decoded when a receiver first reads them."""

from itertools import count

import anyio
import pytest

from cachegraph.channels.payload import Payload

pytestmark = pytest.mark.anyio


async def test_receivers_that_read_a_reply_at_once_get_one_reply() -> None:
    replies, gate = count(1), anyio.Event()

    async def write() -> str:
        number = next(replies)
        await gate.wait()
        return f"reply {number}"

    payload, read = Payload("a", write=write), list[str]()

    async def receive() -> None:
        read.append(await payload.read())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            gate.set()
    assert read == ["reply 1", "reply 1"]


async def test_a_receiver_that_is_cancelled_while_it_decodes_a_reply_leaves_it_to_the_next() -> None:
    tries, read = count(1), list[str]()

    async def write() -> str:
        if next(tries) == 1:
            await anyio.sleep_forever()
        return "reply"

    payload, leaves = Payload("a", write=write), anyio.CancelScope()

    async def leave() -> None:
        with leaves:
            await payload.read()

    async def receive() -> None:
        read.append(await payload.read())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            leaves.cancel()
    assert read == ["reply"]
