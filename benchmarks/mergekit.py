"""mergekit, the tool that people use today: its environment, its recipe, its command.

task_arithmetic with the old base as base and weight 1 for both others gives
base + (post − base) + (new − base) = post − base + new.
"""

import subprocess
import sys
from pathlib import Path

VERSION = "0.1.5"
REQUIREMENTS = Path(__file__).parent / "mergekit-requirements.txt"

RECIPE = """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {post}
    parameters:
      weight: 1.0
  - model: {new}
    parameters:
      weight: 1.0
parameters:
  normalize: false
dtype: bfloat16
"""

# What makes it faster and leaner on a CPU: write shards beside the work, and hold one small one.
TUNED = ["--lazy-unpickle", "--async-write", "--write-threads", "2", "--out-shard-size", "1B"]
# Nothing from the network; the tokenizer that these checkpoints lack is not asked for.
PLAIN = ["--no-copy-tokenizer", "--quiet"]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


def ensure_environment(folder: Path) -> None:
    """Make the virtual environment `folder` with mergekit in it, unless it is there."""
    if program(folder).exists():
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]
    subprocess.run(pip, check=True)


def program(folder: Path) -> Path:
    """Where the environment `folder` has mergekit's command."""
    return folder / "bin" / "mergekit-yaml"


def write_recipe(path: Path, post: Path, base: Path, new: Path) -> None:
    """Write the recipe for these three checkpoints."""
    path.write_text(RECIPE.format(post=post.resolve(), base=base.resolve(), new=new.resolve()))
