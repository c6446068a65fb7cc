"""Parts as tasks of a Ray cluster, on several nodes of which one is lost."""

import os
import random
import threading
import time

import pytest

import paramdelta
from paramdelta import UsageError
from tests.buckets import contents

ray = pytest.importorskip("ray", reason="needs ray; make test-ray installs it")

SIZE = "1MB"
PROMPT = {  # notice a lost node at once
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster():
    """A head that runs nothing, and two nodes. Each has a processor and 2 GB."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_usage_stats_enabled"] = "0"  # noqa: SIM112
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": 80 << 20,
        "_system_config": PROMPT,
    }
    found = Cluster(initialize_head=True, head_node_args=head)
    nodes = [add(found) for _ in range(2)]
    environment = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    ray.init(address=found.address, log_to_driver=False, runtime_env=environment)
    yield found, nodes
    ray.shutdown()
    found.shutdown()


def add(cluster):
    """A node."""
    return cluster.add_node(num_cpus=1, memory=2 << 30, object_store_memory=80 << 20)


def test_a_lost_node_does_no_harm(cluster, wide, tmp_path):
    """The bytes are those of threads, and every shard is there though a node went meanwhile."""
    expected = contents(
        paramdelta.mix(wide.recipe(), tmp_path / "a" / "out", shard_size=SIZE).folder
    )
    found, nodes = cluster
    node = nodes.pop(random.randrange(2))

    def lose():
        time.sleep(random.uniform(0.2, 4))
        found.remove_node(node, allow_graceful=False)

    loses = threading.Thread(target=lose, daemon=True)
    loses.start()
    seen = []
    result = paramdelta.mix(
        wide.recipe(),
        tmp_path / "b" / "out",
        shard_size=SIZE,
        workers=1,
        engine="ray",
        progress=seen.append,
    )
    loses.join()
    nodes.append(add(found))
    assert contents(tmp_path / "b" / "out") == expected
    assert os.listdir(tmp_path / "b") == ["out"]
    assert seen[-1].done == seen[-1].total
    assert result.moved > 0


def test_an_error_on_a_worker_is_raised_here(cluster, wide, tmp_path):
    """With its class and its words."""
    with pytest.raises(UsageError) as caught:
        paramdelta.mix(
            wide.recipe(), tmp_path / "out", shard_size=SIZE, engine="ray", workers=1, memory="1MB"
        )
    assert caught.value.code == "too-little-memory"
