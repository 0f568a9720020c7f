"""What public docstrings say: the shapes of tensors and the errors that callers meet."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from cachegraph import errors

ROOT = Path(__file__).parents[1]
FILES = [file for folder in sorted(ROOT.glob("*/__init__.py")) for file in sorted(folder.parent.rglob("*.py"))]
FILES = [file for file in FILES if file.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")]
ERRORS = {name for name in dir(errors) if name.endswith("Error")}
TENSOR = re.compile(r"\b(Tensor|ndarray)\b")
SHAPE = re.compile(r"\((?:[\w.*+/ ]+,\s*)+[\w.*+/ ]*\)|scalar|shape")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_public_functions_say_the_shapes_of_their_tensors() -> None:
    silent = [
        place for place, function, doc in _documented() if TENSOR.search(_signature(function)) and not SHAPE.search(doc)
    ]
    assert silent == []


def test_public_functions_name_the_errors_that_they_raise() -> None:
    silent = [
        f"{place}: {sorted(raised)}"
        for place, function, doc in _documented()
        if (raised := _raised(function) - _names(doc))
    ]
    assert silent == []


def _documented() -> Iterator[tuple[str, Function, str]]:
    """Public functions and methods. One without a docstring, of a class with bases, has the docstring of a base."""
    for file in FILES:
        source = file.read_text()
        for function, inherits in _public(ast.parse(source).body, inherits=False):
            doc = ast.get_docstring(function) or ""
            if not doc and inherits:
                continue
            above = source.splitlines()[function.lineno - 1 : function.body[0].lineno - 1]  # comments of parameters
            yield f"{file.relative_to(ROOT)}:{function.lineno} {function.name}", function, "\n".join([doc, *above])


def _public(body: list[ast.stmt], inherits: bool) -> Iterator[tuple[Function, bool]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node.body, inherits=bool(node.bases))
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node, inherits


def _signature(function: Function) -> str:
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    hints = [argument.annotation for argument in given] + [function.returns]
    return " ".join(ast.unparse(hint) for hint in hints if hint is not None)


def _raised(function: Function) -> set[str]:
    """The package's errors that the function's own lines raise and let through."""
    raised = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc is not None]
    return {each.func.id for each in raised if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)} & ERRORS


def _names(doc: str) -> set[str]:
    return set(re.findall(r"\w+Error", doc))
