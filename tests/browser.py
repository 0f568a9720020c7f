"""A page in a real browser, over its debugging protocol on a pipe: no port is opened and nothing is downloaded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from waiting import wait_until

__all__ = ["Page", "chromium", "open_page"]

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]  # fmt: skip


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


class ScriptError(RuntimeError):
    """A script in the page raised, for instance because an element isn't there."""


class Page:
    """One tab. `events` is everything that the browser told."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes]):
        self._in, self._out = reading, writing
        self._left, self._number = b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Go to this address and wait until the page is loaded."""
        before = len(self.seen("Page.loadEventFired"))
        self.call("Page.navigate", url=url)
        while len(self.seen("Page.loadEventFired")) == before:
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise ScriptError(result["exceptionDetails"])
        return result["result"].get("value")

    def media(self, media: str = "", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def width(self, pixels: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False)

    def wait_for(self, condition: str, seconds: float = 60) -> Any:
        """Wait until the JavaScript expression is true, and return its value. An element may not be there yet."""
        end = time.monotonic() + seconds
        while not (value := self._try(condition)):
            assert time.monotonic() < end, f"it did not happen in time: {condition}"
            time.sleep(0.02)
        return value

    def expect(self, script: str, value: Any, seconds: float = 60) -> None:
        """Wait until the JavaScript expression has this value: a page shows what it heard a little later."""
        end = time.monotonic() + seconds
        while (found := self._try(script)) != value:
            assert time.monotonic() < end, f"{script} is {found!r}, not {value!r}"
            time.sleep(0.02)

    def _try(self, script: str) -> Any:
        try:
            return self.run(script)
        except ScriptError:
            return None

    def press(self, key: str) -> None:
        """Press and release a key, such as `Enter` or `ArrowRight`."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **more)

    def pdf(self) -> bytes:
        return b64decode(self.call("Page.printToPDF")["data"])

    def seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            piece = self._in.read(65536)
            if not piece:
                raise RuntimeError("the browser has gone")
            self._left += piece
        line, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


# The browser reads commands from descriptor 3 and answers on 4.
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def _folder() -> Iterator[str]:
    """A folder that is gone in the end, although a process that has just been killed may still write into it."""
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        wait_until(lambda: _is_deleted(folder))


def _is_deleted(folder: str) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not Path(folder).exists()


@contextmanager
def open_page() -> Iterator[Page]:
    """A browser with a new, empty profile, and its one page."""
    program = chromium()
    assert program is not None
    to_it, ours = os.pipe()
    mine, from_it = os.pipe()
    with ExitStack() as stack:
        profile = stack.enter_context(_folder())
        writing = stack.enter_context(os.fdopen(ours, "wb", 0))
        reading = stack.enter_context(os.fdopen(mine, "rb", 0))
        command = [sys.executable, "-c", START, str(to_it), str(from_it), program, *FLAGS, f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        own = {**os.environ, "TMPDIR": profile, "HOME": profile}  # where it leaves folders, also when it is killed
        browser = subprocess.Popen(
            command, pass_fds=(to_it, from_it), stdout=quiet, stderr=quiet, env=own, start_new_session=True
        )
        stack.callback(browser.wait)
        stack.callback(os.killpg, browser.pid, signal.SIGKILL)  # and the processes that it has started
        os.close(to_it)
        os.close(from_it)
        yield Page(reading, writing)
