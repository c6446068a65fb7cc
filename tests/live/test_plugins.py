"""What the plugins bring into processes of vLLM and SGLang, which import them always."""

import subprocess
import sys


def test_plugins_import_next_to_nothing():
    """Not numba above all: vLLM 0.32 does not start on a CPU after llvmlite was imported."""
    heavy = "numba llvmlite numpy torch yaml vllm sglang"
    code = (
        "import sys, paramdelta.live.vllm, paramdelta.live.sglang\n"
        f"sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
