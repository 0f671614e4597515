"""Workers that are Ray actors, on one machine or many (https://docs.ray.io).

Actors rather than Ray Data: an actor holds the weights between pairs, each pair can be retried,
limited in time and recorded by itself, and the driver keeps the journal. Needs
requirements-cluster.txt. Images, weights, the folder of results and this project must have the
same paths on all machines (a shared file system).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from batch.processes import ONE_THREAD, PROJECT
from batch.work import Record, Work
from batch.worker_pool import WorkerDiedError
from registration.pair_tables import PairToRegister
from utils.errors import InputError

try:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
except ImportError:
    ray = None  # type: ignore[assignment]


class PairActor:
    """The process of a worker.

    Args:
        work: on the pairs.
    """

    def __init__(self, work: Work) -> None:
        self._do = work.open()

    def ready(self) -> int:
        """Answer once the weights are loaded, with the process id."""
        return os.getpid()

    def do_pair(self, row: PairToRegister) -> Record:
        """Do one pair.

        Args:
            row: the pair.
        """
        return self._do(row)


class RayCluster:
    """Backend of Ray actors.

    Args:
        address: of a running cluster, "auto" for the one that this machine belongs to, or "local"
            to start Ray on this machine.
        n_workers: number of actors; None for one per GPU, or per CPU core where there are no GPUs.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """

    waits_for_room = True

    def __init__(self, address: str, n_workers: int | None) -> None:
        if ray is None:
            raise InputError(
                "--cluster: Ray is not installed; pip install -r requirements-cluster.txt."
            )
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
        self._connected_before = ray.is_initialized()
        try:
            ray.init(
                address,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": ONE_THREAD | {"PYTHONPATH": path}},
            )
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise InputError(
                f"--cluster {address}: no Ray cluster answers there ({error}); start one with "
                "`ray start --head`, or give --cluster local."
            ) from error
        resources = ray.cluster_resources()
        n_gpus = int(resources.get("GPU", 0))
        self.n_workers = n_workers or n_gpus or int(resources.get("CPU", 1))
        # One GPU an actor where there are some; Ray shows each actor its own. Only when more actors
        # are asked for than there are GPUs do they share them.
        share = 1.0 / -(-self.n_workers // n_gpus) if n_gpus else 0.0
        self._actor: Any = ray.remote(
            num_cpus=1, num_gpus=share, max_restarts=0, max_task_retries=0
        )(PairActor)
        self.name = f"{self.n_workers} Ray actors"

    def start(self, work: Work) -> tuple[Any, Any]:
        """Start an actor; the call ends when it is ready. It waits until the cluster has room."""
        actor = self._actor.remote(work)
        return actor, actor.ready.remote()

    def call(self, worker: Any, row: PairToRegister) -> Any:
        """Begin one pair on a ready actor; if that has died, the call ends so."""
        return worker.do_pair.remote(row)

    def wait(self, calls: list[Any], seconds: float) -> Iterable[Any]:
        """Wait until a call ends; returns those that have ended."""
        if not calls:
            return []
        done, running = ray.wait(calls, num_returns=1, timeout=seconds)
        more = ray.wait(running, num_returns=len(running), timeout=0)[0] if running else []
        return [*done, *more]

    def result(self, call: Any) -> object:
        """Result of a call that has ended; raises what it raised.

        Raises:
            WorkerDiedError: the actor or its machine is gone.
        """
        try:
            return ray.get(call)
        except RayActorError as error:
            cause = getattr(error, "cause", None) or error.__cause__
            if isinstance(cause, InputError):
                raise cause from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkerDiedError(lines[0]) from error
        except RayTaskError as error:
            raise error.as_instanceof_cause() from error

    def kill(self, worker: Any) -> None:
        """End an actor at once, whatever its state."""
        ray.kill(worker, no_restart=True)

    def close(self) -> None:
        """Leave the cluster."""
        if not self._connected_before:
            ray.shutdown()


def is_installed() -> bool:
    """Whether Ray can be used here."""
    return ray is not None
