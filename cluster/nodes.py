"""The nodes of a cluster, as Ray lists them."""

from typing import Any

import ray

from .head import current_head
from .placement import NodeResources

__all__ = ["node_ids", "node_resources", "store_bytes"]

_OWN = ("CPU", "GPU", "memory", "object_store_memory")  # that Ray counts by itself
_LABELS = ("node:", "accelerator_type:", "bundle_group_", "GPU_group_", "CPU_group_")


def node_resources() -> list[NodeResources]:
    """What every node that is alive has in all, whether or not it is in use; named by host and id."""
    return [_node(node) for node in _alive()]


def node_ids() -> dict[str, str]:
    """Ray's id of every node that is alive, by our name for it."""
    return {_name(node): node["NodeID"] for node in _alive()}


def store_bytes() -> dict[str, int]:
    """The bytes of each node's object store, by Ray's id of every node that is alive."""
    return {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in _alive()}


def _alive() -> list[dict[str, Any]]:
    """Raises HeadSilent or ClusterLost if the head does not list them."""
    if (head := current_head()) is not None:
        head.require()
    try:
        nodes = ray.nodes()
    except Exception as error:  # a boundary: Ray's client raises errors of gRPC, whose stream is then broken
        if head is None:
            raise
        head.break_off(error)
    return sorted((node for node in nodes if node["Alive"]), key=_name)


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"


def _node(node: dict[str, Any]) -> NodeResources:
    has: dict[str, float] = node["Resources"]
    custom = {name: most for name, most in has.items() if name not in _OWN and not name.startswith(_LABELS)}
    return NodeResources(_name(node), int(has.get("memory", 0)), float(has.get("GPU", 0)), custom)
