"""A bare tool server on stdin and stdout, for what the SDK's own would never do: `python raw_tool_server.py MODE`."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

mode, *words = sys.argv[1:]
NAMES = {"names": words, "twice": ["go", "go"]}.get(mode, ["go"])
children: list[subprocess.Popen[bytes]] = []
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "family":  # children that ignore what they are told, one of them in a session of its own
    stay = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    children = [subprocess.Popen(stay, start_new_session=own) for own in (False, True)]


def say(answer: Any) -> None:
    if mode == "odd":  # bytes that are no UTF-8, half a character, a raw control character, a byte order mark
        odd = json.dumps(answer).replace("DESCRIBED", "\\ud83d\0").encode()
        sys.stdout.buffer.write(b"\xef\xbb\xbf" + odd.replace(b"WORDS", b"caf\xe9") + b"\n")
        sys.stdout.flush()
        return
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def tools(page: int) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}}
    result: dict[str, Any] = {
        "tools": [{"name": name, "description": "DESCRIBED WORDS", "inputSchema": schema} for name in NAMES]
    }
    if mode == "same":
        result["nextCursor"] = "again"
    if mode == "empty":
        result["nextCursor"] = ""
    if mode in ("new", "slow", "flood"):
        result["nextCursor"] = str(page)
    if mode == "circle":
        result["nextCursor"] = str(page % 3)
    if mode == "three" and page < 3:
        result["nextCursor"] = str(page)
    if mode == "slow":
        time.sleep(0.1)
    if mode == "flood":
        result["tools"] *= 5000
    return result


def answer(message: dict[str, Any], page: int) -> dict[str, Any]:
    if message["method"] == "initialize":
        version = message["params"]["protocolVersion"]
        about = {"name": "r", "version": "1"}
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
    if message["method"] == "tools/list":
        return tools(page)
    if mode in ("hang", "stubborn", "family"):
        with open(words[0] + ".part", "w") as file:
            file.write(" ".join(map(str, [os.getpid(), *(each.pid for each in children)])))
        os.replace(words[0] + ".part", words[0])
        time.sleep(600)
    return {"content": [{"type": "text", "text": message["params"]["name"]}]}


page = 0
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        page += message["method"] == "tools/list"
        known = message["method"] in ("initialize", "tools/list", "tools/call")
        given = {"result": answer(message, page)} if known else {"error": {"code": -32601, "message": "no such method"}}
        say({"jsonrpc": "2.0", "id": message["id"], **given})
