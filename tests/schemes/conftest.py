"""Fixtures for the schemes."""

import pytest

from tests.schemes.posts import save_posts


@pytest.fixture(params=["BF16", "F32"])
def models(request, tmp_path):
    """Folders and tensors of a new base, a base and three posts of it."""
    return tmp_path, save_posts(tmp_path, request.param)
