"""Servers that several tests use."""

from collections.abc import Iterator

import pytest
from live_server import Running, served
from server_graphs import scripted_duo, tiny_duo, tiny_solo


@pytest.fixture(scope="module")
def scripted_server() -> Iterator[Running]:
    with served([scripted_duo()]) as server:
        yield server


@pytest.fixture(scope="module")
def tiny_server() -> Iterator[Running]:
    with served([tiny_solo(), tiny_duo()]) as server:
        yield server
