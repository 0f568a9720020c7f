"""ReplicaPlacement of replicas: nothing is overcommitted, ends of cache edges are together, and errors show the sum."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachegraph.cluster.placement import CacheTraffic, Need, NodeResources, ReplicaPlacement, place
from cachegraph.errors import ConfigError

NAMES = ["a", "b", "c", "d", "e"]
needs = st.dictionaries(
    st.sampled_from(NAMES), st.builds(Need, st.integers(0, 40), st.sampled_from([0.0, 0.5, 1.0, 2.0])), min_size=1
)
nodes = st.lists(st.builds(NodeResources, st.sampled_from("uvwxyz"), st.integers(0, 100), st.sampled_from([0.0, 1, 4])))
unique_nodes = nodes.map(lambda each: list({node.name: node for node in each}.values()))
edges = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(1, 1000)), max_size=8)


def between(needs: dict[str, Need], edges: list[tuple[str, str, int]]) -> list[CacheTraffic]:
    return [CacheTraffic(*edge) for edge in edges if edge[0] in needs and edge[1] in needs]


@settings(max_examples=40)
@given(needs, edges, unique_nodes, st.integers(1, 3))
def test_no_node_is_overcommitted_and_every_byte_is_counted_once(
    needs: dict[str, Need], edges: list[tuple[str, str, int]], nodes: list[NodeResources], replicas: int
) -> None:
    traffic = between(needs, edges)
    try:
        placement = place(needs, traffic, nodes, dict.fromkeys(needs, replicas))
    except ConfigError:
        return
    for node in nodes:
        there = [needs[model] for model in placement.on(node.name)]
        assert sum(need.memory for need in there) <= node.memory
        assert sum(need.gpus for need in there) <= node.gpus
    assert all(len(placement.nodes[model]) == replicas for model in needs)
    total = sum(edge.bytes for edge in traffic)
    assert placement.network_bytes + placement.local_bytes == pytest.approx(total)


@settings(max_examples=40)
@given(needs, edges, st.integers(2, 4))
def test_what_fits_one_node_sends_nothing_over_the_network(
    needs: dict[str, Need], edges: list[tuple[str, str, int]], number: int
) -> None:
    roomy = [NodeResources(f"n{i}", 1000, 100.0) for i in range(number)]
    assert place(needs, between(needs, edges), roomy).network_bytes == 0


@settings(max_examples=40)
@given(needs, edges, unique_nodes)
def test_the_order_of_edges_and_of_calls_changes_nothing(
    needs: dict[str, Need], edges: list[tuple[str, str, int]], nodes: list[NodeResources]
) -> None:
    def run(traffic: list[CacheTraffic]) -> ReplicaPlacement | str:
        try:
            return place(needs, traffic, nodes)
        except ConfigError as error:
            return str(error)

    traffic = between(needs, edges)
    assert run(traffic) == run(traffic[::-1])


def test_a_pair_that_sends_most_stays_together_if_not_all_fit() -> None:
    three = {name: Need(gpus=1.0) for name in "abc"}
    traffic = [CacheTraffic("a", "b", 10), CacheTraffic("b", "c", 1000)]
    placement = place(three, traffic, [NodeResources("x", 0, 2.0), NodeResources("y", 0, 2.0)])
    assert placement.nodes["b"] == placement.nodes["c"] != placement.nodes["a"]
    assert (placement.network_bytes, placement.local_bytes) == (10, 1000)


def test_replicas_of_a_pair_are_spread_as_pairs() -> None:
    pair = {"a": Need(gpus=1.0), "b": Need(gpus=1.0)}
    two = [NodeResources("x", 0, 4.0), NodeResources("y", 0, 4.0)]
    placement = place(pair, [CacheTraffic("a", "b", 5)], two, {"a": 2, "b": 2})
    assert placement.nodes["a"] == placement.nodes["b"]
    assert sorted(placement.nodes["a"]) == ["x", "y"]
    assert placement.network_bytes == 0


def test_unconnected_models_are_balanced() -> None:
    four = {name: Need(10) for name in "abcd"}
    placement = place(four, [], [NodeResources("x", 100), NodeResources("y", 100)])
    assert len(placement.on("x")) == len(placement.on("y")) == 2


def test_too_few_gpus_are_an_error_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as raised:
        place({"big": Need(gpus=4), "small": Need(gpus=0.5)}, [], [NodeResources("x", 0, 4.0)], {"small": 2})
    assert str(raised.value) == (
        "the models need 5 GPUs (1 x 4 for 'big' + 2 x 0.5 for 'small'), and the cluster's one node has 4; ask for "
        "fewer replicas or GPUs in the recipe's `models`, or add nodes"
    )


def test_a_replica_that_fits_no_node_says_what_each_has_left() -> None:
    with pytest.raises(ConfigError) as raised:
        place({"m": Need(6_000_000_000, resources={"fast": 1})}, [], [NodeResources("x", 8_000_000_000)])
    assert str(raised.value) == (
        "replica 1 of 'm' fits no node: it needs 6.00 GB, 1 fast, and beside the others 'x' has 8.00 GB; ask for fewer "
        "replicas or less for each, or add nodes"
    )
