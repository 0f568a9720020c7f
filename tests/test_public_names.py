"""What `import cachegraph` gives, and what it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cachegraph

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", cachegraph.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(cachegraph, name) is not None
    assert name in dir(cachegraph)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'cachegraph' has no attribute 'Grpah'"):
        _ = cachegraph.Grpah


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cachegraph.__version__ == project["version"]


@pytest.mark.parametrize("code", ["import cachegraph", "from cachegraph import Graph, Result, RunError"])
def test_importing_loads_no_torch_and_no_http_client(code: str) -> None:
    heavy = "{'torch', 'transformers', 'httpx2', 'numpy', 'networkx'}"
    check = f"{code}; import sys; print(sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT / "src", check=True)
    assert run.stdout.strip() == "[]"
