"""What the numbers were measured on."""

import os
import platform
from pathlib import Path


def describe(folder: Path) -> dict[str, object]:
    """CPU, cores, memory, kernel and Python, and the kind of file system that holds `folder`."""
    return {
        "cpu": _after_colon(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "file_system": _file_system(folder),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def _after_colon(path: Path, key: str) -> str | None:
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return None


def _file_system(folder: Path) -> str | None:
    """The type of the mount with the longest path above the folder."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return None
    above = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    above = [(at, kind) for at, kind in above if folder.resolve().is_relative_to(at)]
    return max(above, key=lambda mount: len(mount[0]))[1]
