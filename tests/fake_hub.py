"""A Hugging Face hub of a few lines on this machine: the addresses of its interface that a snapshot needs."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

__all__ = ["COMMIT", "hub_environment", "serve_hub"]

COMMIT = "c" * 40

Repos = Mapping[str, Mapping[str, bytes]]


class _Handler(BaseHTTPRequestHandler):
    repos: Repos
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.asked.append(path)
        repo = next((repo for repo in self.repos if f"/{repo}/" in f"{path}/"), None)
        if repo is None:
            self._refuse("RepoNotFound")
            return
        files = self.repos[repo]
        if "/resolve/" in path:
            self._send(files[path.split("/resolve/")[1].split("/", 1)[1]], "application/octet-stream")
        elif "/revision/" in path and not path.endswith((f"/{COMMIT}", "/main")):
            self._refuse("RevisionNotFound")
        elif "/tree/" in path:
            self._json([{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()])
        else:
            siblings = [{"rfilename": n, "size": len(c), "blobId": _oid(c)} for n, c in files.items()]
            self._json({"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}})

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return sha1(content).hexdigest()


@contextmanager
def serve_hub(repos: Repos) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the paths it has been asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"repos": repos, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hub_environment(home: Path, **more: str) -> dict[str, str]:
    """For a process that must not see this machine's own hub settings: the hub's client reads them when imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_HOME": str(home / "hf"), "NO_PROXY": "127.0.0.1"} | more
