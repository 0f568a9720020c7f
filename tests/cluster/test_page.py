"""The Python of the page on clusters runs, with tiny models in the place of the recipe's."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cachegraph.engine.spec import ModelSpec

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def test_the_python_of_the_page_runs(
    models: dict[str, ModelSpec], cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (ROOT / "recipes" / "story-relay.yaml").read_text()
    for name, model in (("small", "smollm2-135m-instruct"), ("other", "gemma-3-270m")):
        shutil.copytree(models[name].source, tmp_path / "recipes" / name)
        recipe = recipe.replace(f"{name}: {model}\n", f"{name}: {{source: ./{name}, dtype: float32}}\n")
    (tmp_path / "recipes" / "story-relay.yaml").write_text(re.sub(r", fuser: [^}]+", "", recipe))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/guides/clusters.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {"__name__": "__docs__"}
    exec(compile(code, "clusters.md", "exec"), names)
    assert names["result"].agents["answerer"].status == "finished"
