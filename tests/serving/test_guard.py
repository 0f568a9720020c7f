"""Who may use a server, and what every answer carries."""

import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import Running, chat, served
from server_graphs import scripted_duo

from cachegraph.errors import ConfigError, InputError
from cachegraph.serving.auth import Keys, read_keys
from cachegraph.serving.config import ServerConfig
from cachegraph.serving.process import bind


def keys(folder: Path, text: str) -> Keys:
    file = folder / "keys"
    file.write_text(text, encoding="utf-8")
    return read_keys(file)


@pytest.fixture
def keyed(tmp_path: Path) -> Any:
    with served([scripted_duo()], keys=keys(tmp_path, "# ours\nalice first-key\n\nsecond-key\n")) as server:
        yield server


def test_a_server_with_keys_takes_none_without_one(keyed: Running) -> None:
    with pytest.raises(openai.AuthenticationError, match="not one of this server's"):
        keyed.openai("wrong").models.list()
    assert [model.id for model in keyed.openai("first-key").models.list()] == ["duo"]
    assert keyed.get("/v1/models", headers={"x-api-key": "second-key"}).status_code == 200
    answer = keyed.get("/v1/models")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert keyed.post("/v1/chat/completions", chat()).status_code == 401
    assert keyed.get("/nothing").status_code == 401


def test_whether_a_server_works_is_told_without_a_key(keyed: Running) -> None:
    assert keyed.get("/health").json()["status"] == "ok"
    assert keyed.get("/ready").json() == {"status": "ready"}


def test_keys_have_tenants(tmp_path: Path) -> None:
    known = keys(tmp_path, "alice one\nalice two\nthree\n")
    assert (known.tenant_of("one"), known.tenant_of("two"), known.tenant_of("four")) == ("alice", "alice", None)
    assert known.tenant_of("three") not in (None, "alice")
    assert "one" not in repr(known)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("a b c\n", "line 1 of the key file"),
        ("one\nalice one\n", "line 2 .* second tenant"),
        ("schlüssel\n", "line 1"),
    ],
)
def test_a_file_without_proper_keys_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keys(tmp_path, text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0"])
def test_a_server_beyond_this_machine_needs_keys(host: str) -> None:
    with pytest.raises(InputError, match="--api-key-file"):
        bind(ServerConfig(host=host, port=0))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "127.0.0.2"])
def test_a_server_on_loopback_needs_none(host: str) -> None:
    with bind(ServerConfig(host=host, port=0)) as sock:
        assert sock.proto == socket.IPPROTO_TCP  # else small packets wait for each other, 40 ms a request
        assert sock.getsockname()[0].startswith("127.")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "localhost.evil",
        "x@127.0.0.1",
        "127.0.0.1/",
        "[::1",
    ],
)
def test_a_name_that_was_pointed_at_this_machine_is_no_host_of_it(scripted_server: Running, host: str) -> None:
    answer = scripted_server.get("/v1/models", headers={"Host": host})
    assert answer.status_code in (400, 421)
    assert "duo" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8765", "192.168.1.2", "a.localhost"])
def test_addresses_and_localhost_are_hosts_of_a_server(scripted_server: Running, host: str) -> None:
    assert scripted_server.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_name_of_a_server_is_one_that_it_was_given() -> None:
    with served([scripted_duo()], hosts=("models.example",)) as server:
        assert server.get("/v1/models", headers={"Host": "models.example"}).status_code == 200
        assert server.get("/v1/models", headers={"Host": "other.example"}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        *(
            {"Origin": each}
            for each in ("https://evil.example", "null", "", "http://[::1", "http://", "file://127.0.0.1")
        ),
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_may_not_use_a_server(scripted_server: Running, headers: dict[str, str]) -> None:
    answer = scripted_server.post("/v1/chat/completions", chat(), headers=headers)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert scripted_server.get("/v1/models", headers=headers).status_code == 403


def test_a_page_of_the_server_itself_may_use_it(scripted_server: Running) -> None:
    headers = {"Origin": scripted_server.url, "Sec-Fetch-Site": "same-origin"}
    assert scripted_server.post("/v1/chat/completions", chat(), headers=headers).status_code == 200


def test_a_body_that_a_page_may_send_unasked_is_not_taken(scripted_server: Running) -> None:
    answer = scripted_server.post("/v1/chat/completions", None, content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_answers_keep_browsers_from_doing_more_with_them(scripted_server: Running) -> None:
    for answer in (scripted_server.get("/health"), scripted_server.get("/nothing"), scripted_server.post("/v1/models")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert "server" not in answer.headers
