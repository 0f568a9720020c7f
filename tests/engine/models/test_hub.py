"""Hub models, against a hub of a few lines on this machine: what is fetched, what is refused, what works offline."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40

PULL = """
import json, sys
from cachegraph.engine.models import ensure
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import CachegraphError
seen = []
try:
    model = ensure(ModelSpec(source=sys.argv[1]), progress=lambda *step: seen.append(step))
    print(json.dumps([model.identity, str(model.folder), model.licence, seen[-1:]]))
except CachegraphError as error:
    print(type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    """The three addresses of the hub's interface that a snapshot needs."""

    repos: dict[str, dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        repo = next((repo for repo in self.repos if f"/{repo}/" in f"{path}/"), None)
        if repo is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        files = self.repos[repo]
        if "/resolve/" in path:
            self._send(files[path.rsplit("/", 1)[1]], "application/octet-stream")
        elif "/tree/" in path:
            self._json([{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in files.items()])
        else:
            siblings = [{"rfilename": n, "size": len(c), "blobId": oid(c)} for n, c in files.items()]
            self._json({"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}})

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{oid(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def oid(content: bytes) -> str:
    return sha1(content).hexdigest()


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[str]:
    model = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    Hub.repos = {
        "org/tiny": model | {"pytorch_model.bin": b"pickle", "README.md": b"#"},
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
        "org/ggufs": {"x.gguf": b"GGUF"},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(name: str, tmp_path: Path, **environment: str) -> str:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables |= {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"} | environment
    run = subprocess.run([sys.executable, "-c", PULL, name], env=variables, capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr
    return run.stdout.strip()


def test_a_hub_model_is_fetched_once_with_its_commit_and_is_then_found_offline(hub, tmp_path, tiny_folder):
    identity, folder, licence, last = json.loads(ask("org/tiny", tmp_path, HF_ENDPOINT=hub))
    assert identity == f"org/tiny@{COMMIT}"
    assert licence == "mit"
    assert {path.name for path in Path(folder).iterdir()} == {path.name for path in tiny_folder.iterdir()}
    assert last[0][0] == "fetch"
    assert last[0][1] == sum(path.stat().st_size for path in tiny_folder.iterdir())

    again = json.loads(ask("org/tiny", tmp_path, HF_HUB_OFFLINE="1"))
    assert again == [identity, folder, licence, []]


def test_what_the_hub_s_own_cache_holds_is_used_when_the_hub_is_out_of_reach(hub, tmp_path):
    first = json.loads(ask("org/tiny", tmp_path, HF_ENDPOINT=hub))
    other = {"CACHEGRAPH_HOME": str(tmp_path / "other")}
    assert json.loads(ask("org/tiny", tmp_path, HF_HUB_OFFLINE="1", **other))[:2] == first[:2]


def test_what_can_not_be_loaded_safely_is_refused_before_it_is_fetched(hub, tmp_path):
    assert "has only pickled weights, which can run code" in ask("org/pickled", tmp_path, HF_ENDPOINT=hub)
    assert "has only GGUF files; download the one you want" in ask("org/ggufs", tmp_path, HF_ENDPOINT=hub)
    assert not list((tmp_path / "hf").rglob("*.bin"))


def test_an_unknown_repository_is_a_model_error_and_no_network_a_config_error(hub, tmp_path):
    assert ask("org/none", tmp_path, HF_ENDPOINT=hub).startswith("ModelError the hub shows you no model 'org/none'")
    unreachable = ask("org/tiny", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.startswith("ConfigError the hub model 'org/tiny' can't be fetched")
    offline = ask("org/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert offline.startswith("ConfigError the hub model 'org/tiny' is not on this disk, and HF_HUB_OFFLINE forbids")
