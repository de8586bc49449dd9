"""Who may ask for what under /api: the token, loopback, and no page of elsewhere."""

import pytest
from starlette.requests import Request

from gateway.access import check_access, check_is_json, host_name
from gateway.errors import RequestError

TOKEN = "t" * 16


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw})


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("", {"host": "localhost:7402"}, 0),
        ("", {"host": "127.0.0.1"}, 0),
        ("", {"host": "[::1]:7402"}, 0),
        ("", {"host": "evil.example"}, 403),
        ("", {}, 403),
        ("", {"host": "localhost:7402", "origin": "http://localhost:7402"}, 0),
        ("", {"host": "localhost:7402", "origin": "http://evil.example"}, 403),
        ("", {"host": "localhost:7402", "origin": "null"}, 403),
        (TOKEN, {"host": "gateway.example"}, 401),
        (TOKEN, {"host": "gateway.example", "authorization": f"Bearer {TOKEN}"}, 0),
        (TOKEN, {"host": "gateway.example", "authorization": f"bearer  {TOKEN} "}, 0),
        (TOKEN, {"host": "gateway.example", "authorization": f"Bearer {TOKEN}x"}, 401),
        (TOKEN, {"host": "gateway.example", "authorization": f"Basic {TOKEN}"}, 401),
        (TOKEN, {"host": "a.example", "authorization": f"Bearer {TOKEN}", "origin": "http://b.example"}, 403),
    ],
)
def test_access(token: str, headers: dict[str, str], status: int) -> None:
    if status == 0:
        check_access(token, request(**headers))
        return
    with pytest.raises(RequestError) as refused:
        check_access(token, request(**headers))
    assert refused.value.status == status


def test_a_body_has_to_be_json() -> None:
    check_is_json(request(content_type="Application/JSON; charset=utf-8"))
    for given in ({}, {"content_type": "text/plain"}):
        with pytest.raises(RequestError) as refused:
            check_is_json(request(**given))
        assert refused.value.status == 415


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.example:1", "a.example"),
        ("[::1]:2", "[::1]"),
        ("10.0.0.1", "10.0.0.1"),
        ("a b", ""),
        ("a:b:c", ""),
        ("", ""),
    ],
)
def test_the_host_is_read_without_its_port(host: str, name: str) -> None:
    assert host_name(request(host=host)) == name
