"""What Ray's errors mean for a run: another replica, a lost cluster, or a sentence that says what to do."""

from typing import Any

import anyio
import pytest
import torch

from cachegraph import __version__
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.errors import ConfigError, ModelError, RunError

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster


class Method:
    """An actor's method that can't be called."""

    def __init__(self, error: Exception):
        self._error = error

    def remote(self, *_: Any) -> Any:
        raise self._error


def raised(error: Exception) -> Exception:
    from cachegraph.cluster.wait import call

    with pytest.raises(Exception) as found:  # noqa: PT011  (the tests look at its type)
        anyio.run(call, Method(error))
    return found.value


@pytest.fixture(autouse=True)
def _no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachegraph.cluster.wait.current_head", lambda: None)


def test_a_node_without_cachegraph_is_told_what_to_install() -> None:
    from ray.exceptions import ActorDiedError

    lines = (
        "The actor died because of an error raised in its creation task, ray::Replica.__init__()\n"
        "RuntimeError: The actor with name Replica failed to import on the worker.\n\n"
        "ModuleNotFoundError: No module named 'cachegraph'\n"
    )
    error = ActorDiedError()
    error.error_msg, error._actor_init_failed = lines, True
    found = raised(error)
    assert isinstance(found, ConfigError)
    assert str(found) == (
        "a node of the cluster can't start a replica: ModuleNotFoundError: No module named 'cachegraph'; install "
        f"cachegraph {__version__} with its extra `ray` on every node, and the versions of Python, Ray, torch and "
        "transformers that are here"
    )


def test_a_replica_that_has_died_is_gone_and_what_can_not_be_sent_is_the_runs_error() -> None:
    from ray.exceptions import ActorDiedError, OutOfDiskError

    from cachegraph.cluster.wait import ReplicaGone

    assert isinstance(raised(ActorDiedError()), ReplicaGone)
    found = raised(TypeError("cannot pickle '_thread.lock' object"))
    assert (
        str(found)
        == "what a turn is given can't be sent to the cluster: TypeError: cannot pickle '_thread.lock' object"
    )
    assert "the object store of a node is full" in str(raised(OutOfDiskError("disk")))


def test_a_broken_connection_of_rays_client_loses_the_cluster_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from cachegraph.cluster.head import ClusterLost, Head

    head = Head("ray://head:10001", patience=3600.0)
    monkeypatch.setattr("cachegraph.cluster.wait.current_head", lambda: head)
    found = raised(ConnectionError("Failed during this or a previous request.\n\tstatus = StatusCode.NOT_FOUND"))
    assert isinstance(found, ClusterLost)
    assert str(found).startswith(
        "the connection to the cluster is lost: Ray's client was disconnected from ray://head:10001; when the cluster"
    )


def test_an_error_of_the_agent_passes_with_its_own_sentence() -> None:
    from ray.exceptions import RayTaskError

    error = RayTaskError("load", "a traceback", ModelError("there is no model"))
    found = raised(error.as_instanceof_cause())
    assert (type(found), str(found)) == (ModelError, "there is no model")


@pytest.mark.parametrize("name", ["cachegraph", "python", "a-package-that-the-node-does-not-know"])
def test_a_node_with_another_version_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cachegraph.cluster import replica_set

    here = {"cachegraph": "0.1.0", "python": "3.11.7", name: "2.0"}
    there = {other: version for other, version in here.items() if other != name}
    monkeypatch.setattr(replica_set, "own_versions", lambda: here)
    replica_set._check_versions("0123456789", here | {"more": "1"})
    with pytest.raises(ConfigError, match=f"{name} is 2.0 here and not known on the cluster's node 01234567; install"):
        replica_set._check_versions("0123456789", there)


def test_a_cache_for_which_the_store_has_no_room_in_spite_of_its_budget_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.exceptions import ObjectStoreFullError

    from cachegraph.cluster import stored_cache

    def full(_: Any) -> Any:
        raise ObjectStoreFullError("full")

    monkeypatch.setattr(stored_cache, "store_tensors", full)
    kv = KV((LayerKV(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)),), torch.arange(3))
    store = stored_cache.CacheStore(1000)
    (stored,) = store.store([kv], room=10**6)
    assert (stored.tensors_at, stored.nbytes) == (stored_cache.NOWHERE, kv.nbytes)
    with pytest.raises(RunError, match=r"the object store of a node is full.*ray start --object-store-memory BYTES"):
        store.store([kv])
