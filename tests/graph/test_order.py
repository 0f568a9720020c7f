"""Senders come first, in graphs of any length and with cycles."""

from cachegraph.graph.topology.order import senders_first


def test_senders_come_before_receivers_whatever_order_the_recipe_has() -> None:
    after = {"c": ["d"], "b": ["c"], "a": ["b", "d"]}
    order = senders_first("dcba", after)
    assert all(order.index(sender) < order.index(name) for sender, names in after.items() for name in names)


def test_a_cycle_is_left_where_it_was_entered() -> None:
    assert senders_first("abc", {"a": ["b"], "b": ["c"], "c": ["b"]}) == ["a", "b", "c"]


def test_a_chain_of_any_length_is_ordered() -> None:
    names = [str(number) for number in range(50_000)]
    after = {name: [str(int(name) + 1)] for name in names[:-1]}
    assert senders_first(reversed(names), after) == names
