"""Fixtures for stores behind HTTP."""

import pytest

from paramdelta.storage import http
from paramdelta.storage import hub as storage
from tests.hubserver import TOKEN


@pytest.fixture
def connect(tmp_path, monkeypatch):
    """Make a server the Hub of this process, with an empty cache; pauses are short."""

    def use(server, **constants):
        from huggingface_hub import constants as client

        path = "{repo_id}/resolve/{revision}/{filename}"
        given = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.url}/{path}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": True,
            **constants,
        }
        for name, value in given.items():
            monkeypatch.setattr(client, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(http, "FIRST_PAUSE", 0.001)
        forget()

    def forget():
        storage._LISTINGS.clear()
        storage._FILES.clear()

    use.forget = forget
    yield use
    forget()
