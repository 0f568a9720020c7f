"""Tiny models, each made once a session."""

from collections.abc import Iterator

import pytest
import torch
from tiny import Tiny, config_of, load_tiny

from cachegraph.engine.model.load import LoadedModel


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """`tiny(kind)` is a random model of that kind."""
    made: dict[tuple[str, torch.dtype], LoadedModel] = {}

    def make(kind: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
        if (kind, dtype) not in made:
            made[kind, dtype] = load_tiny(config_of(kind), tmp_path_factory.mktemp(kind), dtype=dtype)
        return made[kind, dtype]

    return make
