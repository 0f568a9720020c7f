"""Processes of their own that have torch already: each a fork of one that has imported it, and nothing of ours."""

import atexit
import json
import socket
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from subprocess import CompletedProcess, Popen

__all__ = ["run_warm"]

SERVER = """
import json, os, socket, sys
import httpx, torch
asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, files, _, _ = socket.recv_fds(asked, 1 << 20, 2)
    if not message:
        sys.exit()
    out, err = files
    child = os.fork()
    if not child:
        break
    os.close(out)
    os.close(err)
    asked.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asked.close()
code, sys.argv, environment = json.loads(message)
os.dup2(out, 1)
os.dup2(err, 2)
os.environ.clear()
os.environ.update(environment)
exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
"""


def run_warm(code: str, *arguments: str, env: Mapping[str, str], timeout: float = 120) -> CompletedProcess[str]:
    """As `subprocess.run([sys.executable, "-c", code, *arguments], env=env)`, its output captured."""
    line = ["-c", *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        server = _server()
        server.settimeout(timeout)
        socket.send_fds(server, [json.dumps([code, line, dict(env)]).encode()], [out.fileno(), err.fileno()])
        ended = int(server.recv(16))
        out.seek(0)
        err.seek(0)
        return CompletedProcess(line, ended, out.read(), err.read())


@cache
def _server() -> socket.socket:
    """Started with the first question; ends when this process does, since nobody holds the other end any more."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = Popen([sys.executable, "-c", SERVER, str(its.fileno())], pass_fds=[its.fileno()])

    def end() -> None:
        ours.close()
        process.wait(60)

    atexit.register(end)
    return ours
