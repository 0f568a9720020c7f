"""A real chat endpoint on this machine that follows a script, and the pieces of its answers."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers its requests with the script's answers, one after the other, the last one again and again."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                server.headers.append({**dict(self.headers.items()), "path": self.path})
                answer = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                with suppress(OSError):  # the client may have left
                    answer(self)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)


def event(data: Any) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def piece(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
DONE = event("[DONE]")


def stream(*parts: bytes | threading.Event) -> Answer:
    """Sends the parts; waits where an event stands."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-type", "text/event-stream")
        request.end_headers()
        for part in parts:
            if isinstance(part, threading.Event):
                part.wait(60)
            else:
                request.wfile.write(part)
                request.wfile.flush()

    return answer


def status(code: int, body: str = "", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", str(len(body.encode())))
        request.end_headers()
        request.wfile.write(body.encode())

    return answer


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def calling(*pieces: dict[str, Any]) -> Answer:
    parts = [event({"choices": [{"delta": {"tool_calls": [part]}}]}) for part in pieces]
    return stream(*parts, event({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}), USAGE, DONE)
