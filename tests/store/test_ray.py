"""Harvests by Ray actors on two nodes of this machine, one of whose actors is killed and one of which is lost."""

import json
import os
import signal
import threading
import time
from contextlib import suppress

import pytest
import ray
from ray.cluster_utils import Cluster

import repscope as rs
from repscope.errors import UserError
from repscope.store import harvest
from repscope.worlds.tiny import tiny

SITE = "resid_post.3"
DOCUMENTS = [f"Document {i}. " + f"A sentence with the number {i * i} in it. " * 25 for i in range(160)]
HOW = {"length": 128, "shard_bytes": 500_000, "batch_tokens": 512}


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in {"initial_delay_ms": 0, "period_ms": 500, "failure_threshold": 4}.items():  # Ray sees a lost node in seconds
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    held = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    )
    ray.init(address=held.address, log_to_driver=False)
    yield held
    ray.shutdown()
    held.shutdown()


def contents(place):
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_a_killed_actor_and_a_lost_node(cluster, tmp_path):
    folder, place = tmp_path / "model", tmp_path / "s"
    made = tiny()
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    lm = rs.load(folder)
    harvest(lm, DOCUMENTS, SITE, tmp_path / "alone", **HOW)
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    events, over = [], threading.Event()

    def owners():
        """Processes that have leases of shards."""
        found = set()
        for path in (place / "leases").glob("shard-*.json"):
            with suppress(OSError, ValueError):
                found.add(json.loads(path.read_text())["pid"])
        return found

    def disturb():
        while not over.is_set() and not owners():
            time.sleep(0.005)
        for pid in list(owners())[:1]:
            os.kill(pid, signal.SIGKILL)
            events.append(("killed", pid, (place / "manifest.json").exists()))
        before = len(list(place.glob("shards/*.json")))
        while not over.is_set() and len(list(place.glob("shards/*.json"))) < before + 2:
            time.sleep(0.005)
        cluster.remove_node(node, allow_graceful=False)
        events.append(("lost", len(list(place.glob("shards/*.json"))), (place / "manifest.json").exists()))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        harvest(lm, DOCUMENTS, SITE, place, engine="ray", workers=2, **HOW)
    finally:
        over.set()
        thread.join()
    assert [name for name, *_ in events] == ["killed", "lost"]
    assert not any(finished for *_, finished in events), "both happened during the harvest"
    assert contents(place) == contents(tmp_path / "alone")
    with pytest.raises(UserError, match="made in memory"):
        harvest(made, DOCUMENTS, SITE, tmp_path / "other", engine="ray", **HOW)
