"""Clusters that can't be reached are errors with a remedy. No test here needs Ray."""

import sys

import pytest

from cachegraph import Graph
from cachegraph.cluster.connect import connect, why_not
from cachegraph.errors import ConfigError, InputError


def test_an_unknown_kind_of_address_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="there is no cluster 'locl'; give 'local' or 'auto'"):
        connect("locl")


def test_a_ray_client_is_refused_with_another_way() -> None:
    with pytest.raises(InputError, match=r"can't reach its cluster through a Ray client .* `ray job submit`"):
        connect("ray://head:10001")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    graph = Graph(output="a")
    graph.add_agent("a", model="m", prompt="hello")
    with pytest.raises(ConfigError, match=r"pip install 'cachegraph\[ray\]'"):
        graph.run(cluster="local")


def test_a_cluster_that_is_not_there_says_how_to_start_one() -> None:
    said = why_not("auto", "Could not find any running Ray instance")
    assert said == (
        "there is no cluster at 'auto': Could not find any running Ray instance; start one with `ray start --head`, or "
        "use 'local', and see that this process has the cluster's token (`ray get-auth-token`)"
    )


def test_other_versions_on_the_cluster_are_named() -> None:
    words = "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\nThis process: 3.11.7"
    assert why_not("auto", words) == (
        "this process and the cluster 'auto' have different versions: Version mismatch: The cluster was started with: "
        "Ray: 2.60.0 Python: 3.12.1 This process: 3.11.7; install the same on both"
    )
