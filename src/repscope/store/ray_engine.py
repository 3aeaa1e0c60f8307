"""Harvests by Ray Core actors: the same workers, on the nodes of a cluster.

Each actor loads the network, takes leases, and writes its shards to the place of the store, which all nodes must reach. It returns
the number of the shards it wrote: no activation passes through Ray's object store. An actor that dies, with its node or alone, is
replaced; the lease of its shard ends and another actor writes it.
"""

import time
from typing import Any

from repscope.errors import UserError
from repscope.store.files import files_at
from repscope.store.plan import HarvestPlan, read_plan
from repscope.store.workers import record_name, work

_REPLACED_AT_MOST = 16  #: actors per worker
_POLL_SECONDS = 0.2


class _Worker:
    """The actor: a network and a store."""

    def __init__(self, place: str, lease_seconds: float) -> None:
        self.files, self.lease_seconds = files_at(place), lease_seconds
        self.plan = read_plan(self.files)
        self.lm = self.plan.load_model()

    def step(self) -> int:
        """Write one shard; 0 if other workers have all that remain."""
        done = work(self.files, self.lm, self.plan, lease_seconds=self.lease_seconds, most=1, wait=False)
        if not done:
            time.sleep(_POLL_SECONDS)
        return done


def run_on_ray(place: str, plan: HarvestPlan, workers: int, lease_seconds: float, *, gpu: bool = False) -> None:
    """Write all shards of a harvest with actors. Connects to the cluster of `RAY_ADDRESS`, or starts Ray on this machine.

    Raises
    ------
    UserError
        When Ray is not installed, the network cannot be loaded elsewhere, or actors die again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("The engine ray needs Ray: pip install 'repscope[ray]'.") from error
    if plan.load is None:
        raise UserError(
            f"{plan.model.name} was made in memory, so no actor can load it; save it to a folder, or use engine='local'."
        )
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    files = files_at(place)
    cpus = 1 if gpu else plan.threads
    actor_class: Any = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=1 if gpu else 0)
    budget = _REPLACED_AT_MOST * workers
    running: dict[Any, Any] = {}

    def begin() -> None:
        actor = actor_class.remote(place, lease_seconds)
        running[actor.step.remote()] = actor

    for _ in range(workers):
        begin()
    try:
        while True:
            names = set(files.names("shards"))
            if all(record_name(i) in names for i in range(len(plan.shards))):
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for step in ready:
                actor = running.pop(step)
                try:
                    ray.get(step)
                    running[actor.step.remote()] = actor
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, UserError) else error) from error
                except ray.exceptions.RayActorError as error:
                    if isinstance(cause := getattr(error, "cause", None), UserError):
                        raise cause from error
                    budget -= 1
                    if budget < 0:
                        said = " ".join(str(error).split())[:300]
                        raise UserError(
                            f"Actors died {_REPLACED_AT_MOST} times per worker ({said}); look at Ray's logs."
                        ) from error
                    begin()
    finally:
        for actor in running.values():
            ray.kill(actor)
