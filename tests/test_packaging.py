"""The wheel that people install."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# As pip and build call it, but for compression: the fusers take seconds of it.
BUILD = """
import sys, zlib
zlib.Z_DEFAULT_COMPRESSION = 0
from hatchling.build import build_wheel
build_wheel(sys.argv[1])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's Python, with the built wheel in it and the dependencies of this one in reach."""
    room = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(room)], cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = room.glob("cachegraph-*.whl")
    venv.create(room / "env", with_pip=False)
    python = room / "env" / "bin" / "python"
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    options = ["--no-deps", "--no-compile", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    # Behind the wheel: a plain path, so this environment's editable install of cachegraph is not followed.
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def _run(python: Path, code: str, cwd: Path) -> str:
    done = subprocess.run([python, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_is_imported_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import cachegraph.agents.local.agent, cachegraph.channels.load_route\n"
        "import cachegraph.engine.engine, cachegraph.graph.graph\n"
        "print(cachegraph.agents.local.agent.__file__)"
    )
    place = _run(installed, code, tmp_path)
    assert str(installed.parents[1]) in place


def test_the_wheel_brings_its_recipes_and_marks_itself_as_typed(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files\n"
        "root = files('cachegraph')\n"
        "print(*sorted(p.name for p in (root / 'recipes').iterdir()), (root / 'py.typed').is_file())\n"
        "print((root / 'serving' / 'studio' / 'static' / 'index.html').name)"
    )
    out = _run(installed, code, tmp_path)
    assert {
        "science-duo.yaml",
        "document-relay.yaml",
        "models.yaml",
        "recipe.schema.json",
        "True",
        "index.html",
    } <= set(out.split())


def test_bare_names_of_our_folders_stay_free(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "print([name for name in ('agents', 'channels', 'engine', 'graph', 'recipes', 'tests') if find_spec(name)])"
    )
    assert _run(installed, code, tmp_path).strip() == "[]"


def test_the_command_line_starts_without_torch(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv = ['cachegraph', '--help']\nfrom cachegraph.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    assert _run(installed, code, tmp_path).splitlines()[-1] == "0 False"
