"""Mixes on a Ray cluster of two nodes, of which one is lost at a random time in each run.

    python -m benchmarks.lost_nodes DIR ROW SHARD RUNS LOSE

`benchmarks.anywhere` starts it, maybe with another Python that has ray.
"""

import json
import os
import random
import shutil
import sys
import threading
import time
from pathlib import Path

from benchmarks.anywhere import digests

PROMPT = {  # notice a lost node at once
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


def main(folder: Path, row: str, shard: str, runs: int, lose: bool) -> None:
    """Run, compare, and write report.json."""
    os.environ["RAY_usage_stats_enabled"] = "0"  # noqa: SIM112
    import ray
    from ray.cluster_utils import Cluster

    import paramdelta

    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": 80 << 20,
        "_system_config": PROMPT,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def add() -> object:
        return cluster.add_node(num_cpus=1, memory=2 << 30, object_store_memory=80 << 20)

    nodes = [add(), add()]
    paths = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=paths)
    recipe = paramdelta.Recipe(
        str(folder / "in" / "new"),
        [paramdelta.Delta(str(folder / "in" / "post"), str(folder / "in" / "base"))],
    )
    place, walls, lost = folder / row, [], 0
    alone = place / "threads" / "mixed"
    paramdelta.mix(recipe, alone, shard_size=shard)
    expected = digests(alone)
    shutil.rmtree(alone.parent)
    for _ in range(runs):
        out = place / "mixed"
        shutil.rmtree(out, ignore_errors=True)
        over = threading.Event()

        def strike(
            over: threading.Event = over,
            median: float = sorted(walls)[len(walls) // 2] if walls else 4,
        ) -> None:
            nonlocal lost
            if not over.wait(random.uniform(0.1, 0.9) * median):
                cluster.remove_node(nodes.pop(random.randrange(len(nodes))), allow_graceful=False)
                lost += 1

        strikes = threading.Thread(target=strike, daemon=True)
        began = time.perf_counter()
        if lose:
            strikes.start()
        paramdelta.mix(recipe, out, shard_size=shard, engine="ray", workers=1)
        walls.append(time.perf_counter() - began)
        over.set()
        if lose:
            strikes.join()
        while len(nodes) < 2:
            nodes.append(add())
        if digests(out) != expected or [path.name for path in place.iterdir()] != ["mixed"]:
            raise SystemExit("other bytes than threads, or something was left behind")
        print(f"{walls[-1]:.1f} s, {lost} nodes lost", flush=True)
    ray.shutdown()
    cluster.shutdown()
    report = {
        "wall_s": sorted(walls)[len(walls) // 2],
        "runs": runs,
        "lost": lost,
        "files": len(expected),
        "identical": len(expected),
    }
    (place / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "1")
