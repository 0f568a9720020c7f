"""Whatever is sent to a server, it answers in its own words: never a 500, a traceback or a path."""

import json
from pathlib import Path
from typing import Any

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import Running, send

from cachegraph.serving.openapi import OPERATIONS

USUAL = {
    "model": "duo",
    "graph": "duo",
    "messages": [{"role": "user", "content": "why?"}],
    "input": "why?",
    "inputs": {"question": "why?"},
    "max_tokens": 8,
    "answer": "yes",
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS
    | st.sampled_from([*USUAL.values(), "text", "json_schema", {"type": "json_schema"}, "auto", "resp_0", 1e308]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
POSTS = [(path, body) for path, method, _, body, _ in OPERATIONS if method == "post"]
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """A path, and a body that is nearly right."""
    path, kind = draw(st.sampled_from(POSTS))
    fields = list(kind.model_fields) if kind is not None else []
    body: dict[str, Any] = {name: USUAL[name] for name in fields if name in USUAL}
    for name in draw(st.lists(st.sampled_from([*fields, "other"]), max_size=3)):
        body[name] = draw(VALUES)
    if draw(st.integers(0, 4)) == 0 and body:
        body.pop(draw(st.sampled_from(sorted(body))))
    return path.replace("{run}", draw(st.sampled_from(["server-000000000000", "x", "%00", "..", "server-"]))), body


def check(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    assert str(Path(__file__).parents[2]) not in answer.text
    if answer.status_code >= 400 and answer.content and answer.headers["content-type"] == "application/json":
        error = answer.json()["error"]
        assert error["message"]


@QUIET
@given(requests())
def test_no_body_makes_a_server_fail(scripted_server: Running, request: tuple[str, Any]) -> None:
    path, body = request
    headers = {"Content-Type": "application/json"}
    content = json.dumps(body).encode()
    check(send("POST", f"{scripted_server.url}{path}", content=content, headers=headers))


@QUIET
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    st.sampled_from([path for path, *_ in OPERATIONS]) | st.text("abc/%2.:~@{}", max_size=20).map("/".__add__),
    st.binary(max_size=100),
    st.dictionaries(
        st.sampled_from(["Last-Event-ID", "Accept", "Authorization", "X-Api-Key", "Content-Type"]),
        st.text("abc09-/;= ", max_size=20).map(str.strip),
        max_size=3,
    ),
)
def test_no_request_makes_a_server_fail(
    scripted_server: Running, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    try:
        answer = send(method, f"{scripted_server.url}{path}", content=body, headers=headers)
    except httpx2.InvalidURL:
        return
    check(answer)
