"""A Hugging Face hub of a few lines that takes pushes: the addresses of its interface that an upload needs."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["PushHub", "serve_push_hub"]

COMMIT = "d" * 40


@dataclass
class PushHub:
    """What it answers with, and what it got. `large`: endings of files that go to its large file storage."""

    address: str = ""
    large: tuple[str, ...] = ()
    refuse: int | None = None  # the status of every answer
    private: bool = False
    exists: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)  # READMEs whose metadata it was asked to judge
    tokens: set[str | None] = field(default_factory=set)
    commits: int = 0


class _Handler(BaseHTTPRequestHandler):
    hub: PushHub

    def do_GET(self) -> None:
        self._answer_to(b"")

    def do_POST(self) -> None:
        self._answer_to(self.rfile.read(int(self.headers["Content-Length"])))

    do_PUT = do_POST

    def _answer_to(self, body: bytes) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if path.startswith("/storage/"):  # of a PUT: addresses there are signed, and need no token
            hub.stored[path.removeprefix("/storage/")] = body
            self._send(200, {})
            return
        hub.tokens.add(self.headers["Authorization"])
        if hub.refuse is not None:
            self._send(hub.refuse, {"error": "no: the reason"})
        elif path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._send(409 if hub.exists else 200, {"url": f"{hub.address}/org/fusers"})
        elif path == "/api/validate-yaml":
            hub.checked.append(json.loads(body)["content"])
            self._send(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            names = [each["path"] for each in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            files = [
                {"path": n, "uploadMode": mode[n.endswith(hub.large or "/")], "shouldIgnore": False} for n in names
            ]
            self._send(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{"upload": {"href": f"{hub.address}/storage/{each['oid']}"}} for each in objects]
            self._send(200, {"objects": [o | {"actions": a} for o, a in zip(objects, upload, strict=True)]})
        elif path.endswith("/commit/main"):
            self._commit(body)
        elif path == "/api/models/org/fusers":
            self._send(200, {"id": "org/fusers", "sha": COMMIT, "private": hub.private, "siblings": []})
        else:
            self._send(404, {"error": "not here"})

    def _commit(self, body: bytes) -> None:
        hub = self.hub
        hub.commits += 1
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.stored[value["oid"]]
                assert sha256(content).hexdigest() == value["oid"]
                hub.files[value["path"]] = content
        self._send(200, {"commitUrl": f"{hub.address}/org/fusers/commit/{COMMIT}", "commitOid": COMMIT})

    def _send(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_push_hub() -> Iterator[PushHub]:
    hub = PushHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
