"""Asking a server for another scale."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from paramdelta.cli.app import main
from paramdelta.errors import MisfitError, StorageError, UsageError
from paramdelta.live import server


@pytest.fixture
def answering():
    """A server that answers as it is told; ``asked`` holds what came."""
    state = {"status": 200, "body": {"scale": 0.8, "formula": "N + 0.8 · (P - B)"}, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state["asked"].append((self.path, json.loads(body), self.headers["Authorization"]))
            data = json.dumps(state["body"]).encode()
            self.send_response(state["status"])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        state["url"] = f"http://127.0.0.1:{made.server_port}"
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield state
        made.shutdown()


@pytest.mark.parametrize("end", ["", "/", "/v1"])
def test_scale_asks_the_server(answering, capfd, end):
    """One number, or one for each Δ; the formula that the server tells is printed."""
    with pytest.raises(SystemExit) as ended:
        main(["scale", answering["url"] + end, "0.8", "--api-key", "k"])
    assert not ended.value.code
    assert capfd.readouterr().out == "N + 0.8 · (P - B)\n"
    server.ask_scale(answering["url"], [1, 0.5])
    assert answering["asked"] == [
        (server.ROUTE, {"scale": 0.8}, "Bearer k"),
        (server.ROUTE, {"scale": [1, 0.5]}, None),
    ]


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, {"error": "another number of Δs"}, UsageError, "scale-refused"),
        (401, {"error": "Unauthorized"}, MisfitError, "scale-not-changed"),
        (404, ["no JSON object"], MisfitError, "scale-not-changed"),
        (500, {"error": "the disk is gone"}, MisfitError, "scale-not-changed"),
        (200, "not an object", StorageError, "server-unreachable"),
    ],
)
def test_what_the_server_refuses_is_told(answering, status, body, kind, code):
    """The server's own words are in the error."""
    answering |= {"status": status, "body": body}
    with pytest.raises(kind) as caught:
        server.ask_scale(answering["url"], 0.8)
    assert caught.value.code == code
    if isinstance(body, dict):
        assert caught.value.got == body["error"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", ""])
def test_other_addresses_are_refused(url):
    """Only http and https."""
    with pytest.raises(UsageError) as caught:
        server.ask_scale(url, 1)
    assert caught.value.code == "invalid-address"


def test_nobody_listens():
    """A server that is not there is an I/O error."""
    with pytest.raises(StorageError) as caught:
        server.ask_scale("http://127.0.0.1:9", 1)
    assert caught.value.code == "server-unreachable"
