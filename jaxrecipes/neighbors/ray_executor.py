"""Makes the pieces of a stage as Ray Data tasks, on this machine or on a cluster.

https://docs.ray.io/en/latest/data/data.html. Ray is an extra and imported when it is needed. The
cluster is the one that Ray's own environment names (RAY_ADDRESS); without it, one is started on
this machine. Nothing travels but the number of a piece and what is told of it: documents, vectors
and results are files, on a file system that all machines see. So a worker that dies loses the piece
that it was making, Ray has another one make it, and pieces that are there stay there.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from jaxrecipes import errors
from jaxrecipes.errors import ConfigError, JaxrecipesError
from jaxrecipes.neighbors.executor import Progress, Work, Worker

INSTALL = "pip install 'jaxrecipes[ray]'"
# Times that a piece is tried again after its worker died. Ray Data itself would try forever, and a
# piece that does not fit into memory kills every worker.
RETRIES = 3


def missing_ray() -> str:
    """Says why Ray cannot be used; empty where it can."""
    try:
        _import_ray()
    except ImportError as error:
        return f"Ray Data cannot be imported ({error})"
    return ""


class RayExecutor:
    """Makes pieces on the workers of a Ray cluster."""

    def __init__(
        self,
        *,
        cpus: float = 1,
        tpus: int = 0,
        gpus: float = 0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Connects to the cluster, or starts one on this machine.

        Args:
            cpus: CPUs of a piece.
            tpus: TPU chips of a piece of a stage that accelerators make faster.
            gpus: GPUs of such a piece.
            log: Called with a line every ten seconds.

        Raises:
            ConfigError: Ray is not there.
            JaxrecipesError: The cluster cannot be reached.
        """
        reason = missing_ray()
        if reason:
            raise ConfigError(
                f"executor: ray was asked for, but {reason}. Install it with `{INSTALL}`, or use "
                "executor: local."
            )
        self._cpus, self._tpus, self._gpus, self._log = cpus, tpus, gpus, log
        _connect()

    def run(self, work: Work) -> list[dict[str, Any]]:
        """See ``Executor``.

        Raises:
            JaxrecipesError: What a worker raised; a piece lost its worker four times; or the
                cluster is gone.
        """
        if not work.pieces:
            return []
        ray = _import_ray()
        # The object store, because a model is larger than what may travel with a function.
        maker = ray.put(work.make_worker)
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
        dataset = ray.data.from_items(list(range(work.pieces)), override_num_blocks=work.pieces)
        options: dict[str, Any] = {"num_cpus": self._cpus}
        if work.memory:
            options["memory"] = work.memory
        if work.accelerator and self._tpus:
            options["resources"] = {"TPU": self._tpus}
        if work.accelerator and self._gpus:
            options["num_gpus"] = self._gpus
        if (self._tpus or self._gpus) and not work.accelerator:
            # JAX would take every accelerator that it finds, from those who asked for one.
            options["runtime_env"] = {"env_vars": {"JAX_PLATFORMS": "cpu"}}
        if work.keeps:
            dataset = dataset.map(
                _KeptWorker,
                fn_constructor_args=(maker, attempts),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=work.pieces, max_tasks_in_flight_per_actor=1
                ),
                **options,
            )
        else:
            dataset = dataset.map(_make_one, fn_args=(maker, attempts), **options)
        progress, results = Progress(work, self._log), {}
        try:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise _raised(work, row)
                results[row["piece"]] = json.loads(row["result"])
                progress.done()
        except ray.exceptions.RayError as error:
            raise JaxrecipesError(
                f"{work.name}: the cluster failed ({error}). Run the same command again: what is "
                "finished is kept."
            ) from error
        return [results[piece] for piece in range(work.pieces)]


class _Attempts:
    """Counts how often each piece was begun."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, piece: int) -> int:
        self._counts[piece] += 1
        return self._counts[piece]


class _KeptWorker:
    """A process that makes piece after piece with what it has prepared."""

    def __init__(self, maker: Any, attempts: Any) -> None:
        ray = _import_ray()

        self._make_worker: Callable[[], Worker] = ray.get(maker)
        self._worker: Worker | None = None
        self._attempts = attempts

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        def work(piece: int) -> dict[str, Any]:
            if self._worker is None:
                self._worker = self._make_worker()
            return self._worker(piece)

        return _guarded(work, row["item"], self._attempts)


def _make_one(row: dict[str, Any], maker: Any, attempts: Any) -> dict[str, Any]:
    ray = _import_ray()

    return _guarded(lambda piece: ray.get(maker)()(piece), row["item"], attempts)


def _guarded(work: Worker, piece: int, attempts: Any) -> dict[str, Any]:
    """Returns an error of ours as a value: it is an answer, not something to try again."""
    ray = _import_ray()

    result, error = "", ""
    if ray.get(attempts.begin.remote(piece)) > 1 + RETRIES:
        error = _DIED
    else:
        try:
            result = json.dumps(work(piece))
        except JaxrecipesError as raised:
            result, error = str(raised), type(raised).__name__
    return {"piece": piece, "result": result, "error": error}


_DIED = "died"


def _raised(work: Work, row: dict[str, Any]) -> JaxrecipesError:
    if row["error"] != _DIED:
        return getattr(errors, row["error"], JaxrecipesError)(row["result"])
    return JaxrecipesError(
        f"{work.name}: piece {row['piece']} lost its worker {1 + RETRIES} times. That is mostly "
        "memory: make pieces smaller (shard_documents, index_documents, partition_documents) or "
        "machines larger, then run the same command again; what is finished is kept."
    )


def _import_ray() -> Any:
    # Late: it is an extra, and large.
    import ray.data
    import ray.exceptions

    return ray


def _connect() -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one here; quiet either way."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
    ray = _import_ray()

    if not ray.is_initialized():
        try:
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "local"),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JaxrecipesError(
                f"Ray: no cluster at {os.environ.get('RAY_ADDRESS', 'this machine')} ({error}). "
                "Set RAY_ADDRESS to its address, or unset it to start one here."
            ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
