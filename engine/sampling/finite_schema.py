"""Finds schemas that no finite reply satisfies: an object that requires one of its own kind within it."""

from typing import Any

from .closed_schema import sub_schemas

__all__ = ["find_endless"]

Path = tuple[str | int, ...]


def find_endless(schema: dict[str, Any]) -> Path | None:
    """Where a schema requires what no reply can ever complete; None where replies can end.

    Least fixed point: a schema ends if all that it requires ends. What else it asks for is judged elsewhere.
    """
    nodes: dict[int, tuple[Path, Any]] = {}
    todo: list[tuple[Path, Any]] = [((), schema)]
    while todo:
        path, node = todo.pop()
        if isinstance(node, dict) and id(node) not in nodes:
            nodes[id(node)] = (path, node)
            todo += [((*path, *below), inner) for below, inner in sub_schemas(node)]
    ends: set[int] = set()
    grows = True
    while grows:
        now = {key for key, (_, node) in nodes.items() if key not in ends and _ends(node, schema, ends)}
        ends |= now
        grows = bool(now)
    if id(schema) in ends:
        return None
    endless = [(path, node) for key, (path, node) in nodes.items() if key not in ends]
    demanding = [path for path, node in endless if "required" in node or "minItems" in node]
    return min(demanding, key=len, default=())


def _ends(schema: dict[str, Any], root: dict[str, Any], ends: set[int]) -> bool:
    def known(inner: Any) -> bool:
        return inner is not False and (not isinstance(inner, dict) or id(inner) in ends)

    if "$ref" in schema and not known(_target(root, schema["$ref"])):
        return False
    for key, enough in (("allOf", all), ("anyOf", any), ("oneOf", any)):
        if isinstance(parts := schema.get(key), list | tuple) and not enough(map(known, parts)):
            return False
    if "enum" in schema or "const" in schema:
        return True
    types = schema.get("type")
    wanted = {types} if isinstance(types, str) else set(types or ("null",))
    return bool(
        wanted - {"array", "object"}
        or ("object" in wanted and all(map(known, _required(schema))))
        or ("array" in wanted and all(map(known, _first_items(schema))))
    )


def _required(schema: dict[str, Any]) -> list[Any]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    names = schema.get("required")
    return [
        known.get(name, schema.get("additionalProperties", True))
        for name in (names if isinstance(names, list | tuple) else ())
    ]


def _first_items(schema: dict[str, Any]) -> list[Any]:
    least = schema.get("minItems", 0)
    least = least if isinstance(least, int) else 0
    prefix = schema.get("prefixItems")
    first = list(prefix[:least]) if isinstance(prefix, list | tuple) else []
    return [*first, schema.get("items", True)] if least > len(first) else first


def _target(root: Any, reference: Any) -> Any:
    """What a `$ref` within the schema leads to; True where it leads elsewhere, which others complain of."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return True
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(root, dict) and key in root:
            root = root[key]
        elif isinstance(root, list | tuple) and key.isdecimal() and int(key) < len(root):
            root = root[int(key)]
        else:
            return True
    return root
