"""Ranges over HTTP: retries keep what came, answers are checked, secrets stay with their origin."""

import socket
import threading
import time

import pytest

from paramdelta.errors import CheckpointError, StorageError
from paramdelta.storage import http
from paramdelta.storage.http import Again, RemoteFile, Target, Transport

DATA = bytes(range(256)) * 40


class Script:
    """A server that answers each connection's request with the next of some raw answers."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/file?signature=secret"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self.answers:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536).decode())
                connection.sendall(self.answers.pop(0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def answer(start, stop, status="206 Partial Content", cut=None, **headers):
    """A raw answer with a range of the data, of which only ``cut`` bytes are sent."""
    lines = {
        "Content-Length": stop - start,
        "Content-Range": f"bytes {start}-{stop - 1}/{len(DATA)}",
        "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + DATA[start:stop][:cut]


def read(server, *, start=0, stop=1000, headers=None, find=None):
    """A range through a transport of its own."""
    transport, into = Transport(), bytearray(stop - start)
    target = Target(server.url, headers or {})
    try:
        file = RemoteFile("the file", len(DATA), find or (lambda _: target))
        transport.read(file, start, memoryview(into))
    finally:
        transport.close()
    return bytes(into)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(http, "PATIENCE", 2.0)
    monkeypatch.setenv("NO_PROXY", "*")


def test_a_broken_body_continues_where_it_stopped():
    """The second request asks only for what is missing."""
    with Script(answer(0, 1000, cut=400), answer(400, 1000)) as server:
        assert read(server) == DATA[:1000]
        assert "bytes=0-999" in server.requests[0]
        assert "bytes=400-999" in server.requests[1]


@pytest.mark.parametrize(
    "bad",
    [
        answer(1, 1001),
        answer(0, 999),
        answer(0, 1000, "503 Service Unavailable"),
        answer(0, 1000, Content_Range="none"),
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_wrong_answers_are_asked_for_again(bad):
    """Another range, a shorter one, an error, no range, nothing of HTTP."""
    with Script(bad, answer(0, 1000)) as server:
        assert read(server) == DATA[:1000]
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (answer(0, 1000, Content_Range="bytes 0-999/999999"), "source-changed"),
        (answer(0, 1000, "200 OK", Content_Length=len(DATA)), "no-ranges"),
        (answer(0, 1000, "200 OK"), "source-changed"),
        (answer(0, 0, "416 Range Not Satisfiable"), "source-changed"),
        (answer(0, 0, "400 Bad Request"), "download-failed"),
        (answer(0, 0, "302 Found", Location="ftp://127.0.0.1/x"), "bad-redirect"),
        (answer(0, 0, "302 Found", Location="file:///etc/passwd"), "bad-redirect"),
    ],
)
def test_what_cannot_become_right_is_refused(bad, code):
    """At once, with a code, and without the signed address."""
    with Script(bad) as server, pytest.raises(StorageError) as error:
        read(server)
    assert error.value.code == code
    assert "secret" not in str(error.value)


def test_another_etag_is_refused():
    """What came before and what comes now would be a hybrid."""
    with Script(answer(0, 1000, cut=10, ETag='"a"'), answer(10, 1000, ETag='"b"')) as server:
        with pytest.raises(StorageError) as error:
            read(server)
        assert error.value.code == "source-changed"


def test_a_token_does_not_follow_a_redirect_to_another_host():
    """The Hub's token is for the Hub."""
    with Script(answer(0, 1000)) as other:
        there = f"http://localhost:{other.port}/elsewhere"
        with Script(answer(0, 0, "302 Found", Location=there)) as server:
            assert read(server, headers={"Authorization": "Bearer t"}) == DATA[:1000]
            assert "Authorization" in server.requests[0]
            assert "Authorization" not in other.requests[0]


def test_redirects_end():
    """A server that leads in circles."""
    with Script(*[answer(0, 0, "302 Found", Location="/again")] * 9) as server:
        with pytest.raises(StorageError, match="cannot be read") as error:
            read(server)
        assert "without end" in str(error.value)


def test_an_expired_address_is_found_anew():
    """403, then the new address; what the first one gave is kept."""
    with Script(
        answer(0, 1000, cut=300), answer(0, 0, "403 Forbidden"), answer(300, 1000)
    ) as server:
        found = []

        def find(expiries):
            found.append(expiries)
            return Target(server.url)

        assert read(server, find=find) == DATA[:1000]
        assert found == [0, 1]


def test_access_that_stays_denied_ends_with_the_reason():
    """S3 repeats signatures in its errors: only the message is shown."""
    body = b"<Error><Message>Request has expired</Message><Sig>secret</Sig></Error>"
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Script(*[head + body] * 9) as server, pytest.raises(StorageError) as error:
        read(server)
    assert "Request has expired" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers, seconds):
    """Retry-After as seconds and as a date; the Hub's RateLimit."""
    assert http.ordered(429, headers) == seconds


def test_all_threads_wait_when_the_server_asks():
    """A limit holds for the whole process, and the wait is as long as asked."""
    with Script(answer(0, 0, "429 Too Many", Retry_After="1"), answer(0, 1000)) as server:
        began = time.monotonic()
        assert read(server) == DATA[:1000]
        assert time.monotonic() - began >= 1


def test_a_dead_server_is_given_up(monkeypatch):
    """After the deadline, with the reason and what to do."""
    monkeypatch.setattr(http, "PATIENCE", 0.05)
    with Script() as server:
        server.socket.close()
        with pytest.raises(StorageError) as error:
            read(server, stop=10)
    assert error.value.code == "download-failed"
    assert "refused" in str(error.value)


def test_a_hub_that_is_busy_is_asked_again():
    """What `find` raises as `Again` is tried again."""
    with Script(answer(0, 1000)) as server:
        tries = iter([Again("HTTP 503"), None])

        def find(_):
            error = next(tries)
            if error is not None:
                raise error
            return Target(server.url)

        assert read(server, find=find) == DATA[:1000]


def test_a_pause_ends_with_the_run():
    """`close` wakes a thread that waits for a server's limit."""
    with Script(answer(0, 0, "429 Too Many", Retry_After="300")) as server:
        transport = Transport()
        file = RemoteFile("x", len(DATA), lambda _: Target(server.url))
        threading.Timer(0.2, transport.close).start()
        began = time.monotonic()
        with pytest.raises(StorageError, match="stopped"):
            transport.read(file, 0, memoryview(bytearray(10)))
        assert time.monotonic() - began < 10


def test_a_read_past_the_end_is_refused():
    """Without a request."""
    with Script() as server, pytest.raises(CheckpointError, match="too early"):
        read(server, start=len(DATA) - 5, stop=len(DATA) + 5)


def test_a_proxy_gets_the_whole_address(monkeypatch):
    """HTTP_PROXY is honored, with its password."""
    with Script(answer(0, 1000)) as proxy:
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("http_proxy", f"http://user:word@127.0.0.1:{proxy.port}")
        proxy.url = "http://hub.invalid/file"
        assert read(proxy) == DATA[:1000]
        assert proxy.requests[0].startswith("GET http://hub.invalid/file HTTP")
        assert "Proxy-Authorization: Basic dXNlcjp3b3Jk" in proxy.requests[0]


def test_neighbors_are_read_together():
    """Scattered parts: one request for those that are near, in any order."""
    import numpy as np

    with Script(answer(0, 90), answer(0, 90)) as server:
        transport, into = Transport(), bytearray(30)
        file = RemoteFile("x", len(DATA), lambda _: Target(server.url))
        transport.read_many(file, np.array([80, 0, 40]), memoryview(into))
        assert bytes(into) == DATA[80:90] + DATA[0:10] + DATA[40:50]
        assert len(server.requests) == 1
        transport.close()
