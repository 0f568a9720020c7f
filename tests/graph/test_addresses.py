"""Endpoints and tool servers: hosts are judged by their addresses, when the recipe is read and when it connects."""

import socket
from typing import Any

import anyio
import httpx2
import pytest

from cachegraph.agents.http_client import http_client
from cachegraph.errors import ConfigError, RecipeError
from cachegraph.graph.recipe.load import parse_recipe

ENDPOINT = """version: 1
name: t
models: {e: {base_url: "%s", model: x}}
agents: {a: {model: e, prompt: x}}
output: a
"""
TOOLS = """version: 1
name: t
tools: {w: {url: "%s"}}
agents: {a: {model: m/x, prompt: x, tools: [w]}}
output: a
"""
HERE = [
    *("localhost.", "127.1", "0.0.0.0", "0", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "017700000001"),
    *(
        "127.0.0.1.",
        "127.00.0.1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
    ),
    *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "foo.localhost", "a.b.localhost.", "LOCALHOST.LOCALDOMAIN", "127.0.1"),
    *("ip6-localhost", "ip6-loopback", "127%2e0%2e0%2e1", socket.gethostname()),
]
NEAR = [
    *("169.254.169.254", "10.0.0.1", "10.1", "172.16.0.1", "192.168.1.5", "192.168.257", "100.64.0.1", "0xa9fea9fe"),
    *("224.0.0.1", "255.255.255.255", "240.0.0.1", "[fe80::1]", "[fd00:ec2::254]", "[ff02::1]", "[::ffff:10.0.0.1]"),
    *("[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "2852039166", "025177524776", "198.18.0.1", "[fec0::1]"),
]


@pytest.mark.parametrize("host", HERE + NEAR)
def test_an_endpoint_in_this_machines_networks_needs_permission_however_it_is_spelt(host: str) -> None:
    for url in (f"http://{host}:9000/v1", f"https://{host}/v1"):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(ENDPOINT % url, "r.yaml")
        (problem,) = caught.value.problems
        assert problem.line == 3
        assert "--allow-local" in problem.hint or "plain web address" in problem.message
        if "%" not in host:
            parse_recipe(ENDPOINT % url, allow_local=True)


@pytest.mark.parametrize("host", [*HERE, "localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_a_tool_server_of_this_machine_needs_allow_code_however_it_is_spelt(host: str) -> None:
    url = f"http://{host}:9/mcp"
    for allow_local in (False, True):
        with pytest.raises(RecipeError, match=r"allow-code|plain web address"):
            parse_recipe(TOOLS % url, allow_local=allow_local)
    if "%" not in host:
        parse_recipe(TOOLS % url, allow_code=True)


@pytest.mark.parametrize("host", NEAR)
def test_a_tool_server_in_a_private_network_needs_permission(host: str) -> None:
    with pytest.raises(RecipeError, match="--allow-local"):
        parse_recipe(TOOLS % f"http://{host}:9/mcp")
    parse_recipe(TOOLS % f"http://{host}:9/mcp", allow_local=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:11434/v1",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:1234/v1",
        "http://127.8.9.10/v1",
        "https://api.openai.com/v1",
    ],
)
def test_a_web_service_that_is_plainly_of_this_machine_needs_none(url: str) -> None:
    parse_recipe(ENDPOINT % url)


@pytest.mark.parametrize("port", [22, 25, 111, 631, 2, 1023])
def test_other_services_of_this_machine_need_permission(port: int) -> None:
    with pytest.raises(RecipeError, match="--allow-local"):
        parse_recipe(ENDPOINT % f"http://127.0.0.1:{port}")


def _resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Names lead to these addresses, one a question; the list of what was asked."""
    asked: list[str] = []

    async def getaddrinfo(host: Any, port: Any, **_: Any) -> Any:
        asked.append(str(host))
        answer = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port))]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "0.0.0.0"])
async def test_a_name_that_leads_to_this_machines_networks_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    _resolving(monkeypatch, address)
    async with http_client("http://innocent.example/v1", allow_local=False) as client:
        with pytest.raises(ConfigError, match=f"'innocent.example' leads to {address}.*--allow-local"):
            await client.post("http://innocent.example/v1/chat/completions", json={})


@pytest.mark.anyio
async def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _resolving(monkeypatch, "93.184.216.34", "127.0.0.1")  # rebound after the first answer
    sent: list[Any] = []

    async def handle(_: Any, request: httpx2.Request) -> httpx2.Response:
        sent.append((str(request.url), request.headers["host"], request.extensions["sni_hostname"]))
        return httpx2.Response(200, request=request)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", handle)
    async with http_client("https://innocent.example/v1", allow_local=False) as client:
        await client.post("https://innocent.example/v1/chat/completions", json={})
    assert asked == ["innocent.example"]
    assert sent == [("https://93.184.216.34/v1/chat/completions", "innocent.example", "innocent.example")]


@pytest.mark.anyio
async def test_a_name_is_judged_behind_the_users_proxy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolving(monkeypatch, "169.254.169.254")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with http_client("http://innocent.example/v1", allow_local=False) as client:
        with pytest.raises(ConfigError, match="leads to 169.254.169.254"):
            await client.post("http://innocent.example/v1/chat/completions", json={})
