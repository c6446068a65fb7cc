"""The route of vLLM's server that changes the scale, with a stand-in for its engine."""

import asyncio
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from paramdelta import plan
from paramdelta.demo import tour
from paramdelta.live.folder import write_recipe
from paramdelta.live.vllm import METHOD, ROUTE, Endpoint


class Response:
    """What fastapi's JSONResponse is: an answer that can be sent, unlike a plain dict."""

    def __init__(self, content, status=200):
        self.content, self.status = content, status


class Engine:
    """Notes what it is asked for; fails where it is told to."""

    def __init__(self):
        self.asked, self.fails = [], False

    async def pause_generation(self, **options):
        """Pause."""
        self.asked.append(("pause", options))

    async def collective_rpc(self, method, args):
        """Call the workers."""
        self.asked.append((method, args))
        if self.fails:
            raise RuntimeError("the disk is gone")

    async def resume_generation(self):
        """Go on."""
        self.asked.append(("resume", {}))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """``asked(body)``: the answer of the route; and the engine behind it."""
    for name in ("fastapi", "fastapi.responses"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fastapi.responses"].JSONResponse = Response
    write_recipe(plan(tour.recipe("plain", 1.0)), tmp_path)
    engine, endpoint = Engine(), Endpoint()
    asyncio.run(endpoint.init_state(engine, None, SimpleNamespace(model=str(tmp_path))))

    def ask(body):
        async def read():
            return json.loads(body)

        return asyncio.run(endpoint.post(SimpleNamespace(json=read)))

    return SimpleNamespace(ask=ask, engine=engine, endpoint=endpoint)


def test_the_server_pauses_mixes_and_goes_on(asked):
    """In this order; the answer says what the scale is now."""
    answer = asked.ask(b'{"scale": 0.5}')
    assert (answer.status, answer.content) == (200, {"scale": 0.5})
    assert asked.engine.asked == [
        ("pause", {"mode": "wait", "clear_cache": True}),
        (METHOD, (0.5,)),
        ("resume", {}),
    ]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"scale": "1"}', b'{"scale": NaN}', b'{"scale": [1, 2]}', b"1"]
)
def test_what_is_no_scale_does_not_reach_the_engine(asked, body):
    """The answer is 400 and says why."""
    answer = asked.ask(body)
    assert (answer.status, asked.engine.asked) == (400, [])
    assert answer.content["error"]


def test_a_failure_leaves_the_server_paused(asked):
    """Some weights may be of the new scale: nothing is generated until a scale was set."""
    asked.engine.fails = True
    answer = asked.ask(b'{"scale": 0.5}')
    assert answer.status == 500
    assert answer.content == {"error": "the disk is gone", "paused": True}
    assert ("resume", {}) not in asked.engine.asked
    assert asked.endpoint.scale == 1.0
    asked.engine.fails = False
    assert asked.ask(b'{"scale": 1}').status == 200
    assert asked.engine.asked[-1] == ("resume", {})


def test_both_methods_have_the_route():
    """The route is below /v1, where vLLM asks for its API key."""
    made = []

    def add(path, endpoint, methods):
        made.append((path, *methods))

    Endpoint().attach_router(SimpleNamespace(add_api_route=add, add_route=add))
    assert made == [(ROUTE, "GET"), (ROUTE, "POST")]
    assert ROUTE.startswith("/v1/")
