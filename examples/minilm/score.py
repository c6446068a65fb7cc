"""Shows by numbers whether the Δ came across.

    python -m examples.minilm.score FOLDER MIXED

Post-training taught the model how near operations terms and descriptions are (cosine regression).
Shown on 24 pairs written for this example, which no model was trained on: the mean cosine of right
and of wrong pairs, and how all 576 similarities changed, on the new base as on the old. If the Δ
came across, the change is the same.
"""

import sys
from pathlib import Path
from typing import Any

import torch

PAIRS = [
    ("OOMKilled", "the container used more memory than its limit and was stopped"),
    ("ImagePullBackOff", "the node cannot fetch the image from the registry"),
    ("CrashLoopBackOff", "the process exits again and again soon after it starts"),
    ("PVC pending", "no volume could be found for the storage request"),
    ("NodeNotReady", "a machine of the cluster stopped reporting its health"),
    ("error budget", "how much unreliability is still allowed this month"),
    ("p99 latency", "the response time that one request in a hundred exceeds"),
    ("post-mortem", "a written review of what went wrong and how to prevent it"),
    ("canary release", "the new version is first given to a few users"),
    ("blue-green deployment", "traffic is switched between two identical environments"),
    ("thundering herd", "many clients retry at once and overload the service"),
    ("circuit breaker", "calls to a failing dependency are stopped for a while"),
    ("consumer lag", "messages are produced faster than they are read"),
    ("under-replicated partitions", "some copies of the topic's data are behind the leader"),
    ("deadlock", "two transactions wait for each other's locks"),
    ("slow query log", "a record of database statements that took too long"),
    ("connection pool exhausted", "all database handles are in use and callers wait"),
    ("GC pause", "the virtual machine stops the application to free memory"),
    ("heap dump", "a snapshot of all objects in memory, for finding a leak"),
    ("502 Bad Gateway", "the proxy got an invalid answer from the server behind it"),
    ("429 Too Many Requests", "the client is over its rate limit"),
    ("runbook", "step by step instructions for handling an alert"),
    ("span", "one timed operation inside a distributed trace"),
    ("sidecar", "a helper container that runs next to the main one"),
]


def embed(model: Any, tokenizer: Any, texts: list[str], length: int = 64) -> torch.Tensor:
    """Sentence embeddings, [texts, width]: mean over tokens, scaled to length one."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def similarities(folder: Path) -> torch.Tensor:
    """Cosines of every term with every meaning, [terms, meanings]."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        terms, meanings = (embed(model, tokenizer, list(t)) for t in zip(*PAIRS, strict=True))
    return terms @ meanings.T


def right_and_wrong(cosines: torch.Tensor) -> tuple[float, float]:
    """Mean cosine of a term with its own meaning, and with the other meanings."""
    own = torch.eye(len(cosines), dtype=torch.bool)
    return cosines[own].mean().item(), cosines[~own].mean().item()


def score(folder: Path, mixed: Path) -> dict[str, Any]:
    """The table's rows, and the correlation of what Δ changed on the old and on the new base."""
    places = {
        "base": folder / "base",
        "post": folder / "post",
        "new base": folder / "new-base",
        "ParamΔ": mixed,
    }
    cosines = {name: similarities(place) for name, place in places.items()}
    old = (cosines["post"] - cosines["base"]).flatten()
    new = (cosines["ParamΔ"] - cosines["new base"]).flatten()
    correlation = torch.corrcoef(torch.stack([old, new]))[0, 1].item()
    rows = {name: right_and_wrong(value) for name, value in cosines.items()}
    return {"rows": rows, "correlation": correlation, "change": old.abs().mean().item()}


def main() -> None:
    """Print the table."""
    result = score(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\nmean cosine of 24 operations terms with the meanings of")
    print("              themselves    others")
    for name, (right, wrong) in result["rows"].items():
        print(f"  {name:<10} {right:12.3f} {wrong:9.3f}")
    print(
        f"\nwhat Δ changed in {len(PAIRS) ** 2} similarities (by {result['change']:.3f} on average)"
        f"\n  correlation between old base and new base: {result['correlation']:.3f}"
    )


if __name__ == "__main__":
    main()
