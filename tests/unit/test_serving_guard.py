"""Nobody else's page, host or flood reaches the models: raw requests against a server on loopback."""

import http.client
import json
import socket
import time
from contextlib import closing

import pytest

from components.serving.guard import Guard
from components.serving.limits import Limits
from tests.support.serving import serving
from tests.support.toy import tiny_model_directory

TOKEN = "a-token-of-some-length"
SECONDS = 30
BODY = json.dumps({"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model_directory(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(base):
    with serving({"base": base}, Limits(body_seconds=0.5, body_bytes=5000)) as running:
        yield running


@pytest.fixture(scope="module")
def closed(base):
    """For any host, with a token."""
    with serving({"base": base}, hosts=None, token=TOKEN) as running:
        yield running


def answer(server, method="POST", path="/v1/chat/completions", body=BODY, **headers):
    """(status, what it says)."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "[::1]:{}", "LOCALHOST"])
def test_a_server_of_this_machine_is_called_by_its_names(server, host):
    assert answer(server, Host=host.format(server.port))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "localhost.evil"]
)
def test_a_page_that_calls_it_by_a_name_of_its_own_is_refused(server, host):
    status, said = answer(server, Host=host)
    assert status == 403
    assert "is not this server; call it 127.0.0.1 or ::1 or localhost" in said["error"]["message"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1.evil.example"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health"])
def test_a_page_of_another_origin_is_refused(server, origin, path):
    status, said = answer(server, "POST" if "chat" in path else "GET", path, Origin=origin)
    assert status == 403
    assert "is another site" in said["error"]["message"]


def test_its_own_page_is_not(server):
    here = f"127.0.0.1:{server.port}"
    assert answer(server, Host=here, Origin=f"http://{here}")[0] == 200


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer other", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/nothing"])
def test_without_the_token_there_is_nothing_to_see(closed, given, path):
    status, said = answer(closed, "GET", path, None, **({} if given is None else {"Authorization": given}))
    assert status == 401
    assert said["error"]["code"] == "invalid_api_key"
    assert TOKEN not in json.dumps(said)


def test_with_the_token_any_host_may_ask(closed):
    for host in ("models.example:8000", "127.0.0.1"):
        assert answer(closed, Host=host, Authorization=f"Bearer {TOKEN}")[0] == 200
    assert answer(closed, "GET", "/health", None) == (200, {"status": "ok"})  # for a load balancer
    assert "models" in answer(closed, "GET", "/health", None, Authorization=f"Bearer {TOKEN}")[1]


def test_a_server_for_any_host_has_a_token():
    with pytest.raises(ValueError, match="needs a token"):
        Guard(lambda *_: None, Limits(), hosts=None, token=None)


def test_a_body_that_is_too_long_is_refused_by_what_it_announces_or_brings(server):
    status, said = answer(server, body="x" * 10_000)
    assert (status, said["error"]["message"]) == (413, "the body has more than 5,000 bytes, which is the limit")
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        pieces, headers = (b"x" * 1000 for _ in range(10)), {"Transfer-Encoding": "chunked"}
        connection.request("POST", "/v1/chat/completions", pieces, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    assert answer(server)[0] == 200


def test_a_client_that_dawdles_is_not_waited_for(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        began = time.monotonic()
        said = b"".join(iter(lambda: slow.recv(10_000), b""))  # until it is closed: head and body may come apart
        assert b"408" in said.split(b"\r\n")[0]
        assert b"the request did not come within 0.5 seconds" in said
        assert time.monotonic() - began < SECONDS / 2
    assert answer(server)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/docs", 404),
    ],
)
def test_what_is_not_there_is_said_in_json(server, method, path, status):
    found, said = answer(server, method, path, None)
    assert found == status
    assert f"{method} {path}: there is no such thing here" in said["error"]["message"]


def test_ten_thousand_messages_are_too_many(base):
    with serving({"base": base}) as server:
        body = json.dumps({"model": "base", "messages": [{"role": "user", "content": "a"}] * 10_000})
        status, said = answer(server, body=body)
        assert (status, said["error"]["message"]) == (400, "messages: 10,000 of them, and the limit is 1,000")
        assert answer(server, body="x" * 10_000_000)[0] == 413
        assert answer(server)[0] == 200
