"""Pieces on a Ray cluster of this machine: the same output, also where workers die."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.errors import ConfigError, DataError, JaxrecipesError
from jaxrecipes.neighbors.executor import Executor, LocalExecutor, Work, Worker
from jaxrecipes.neighbors.ray_executor import RETRIES, RayExecutor, missing_ray
from tests.neighbors.pipeline import (
    Settings,
    assert_same,
    make_documents,
    run_stages,
    write_corpus,
)

needs_ray = pytest.mark.skipif(bool(missing_ray()), reason=missing_ray() or "Ray is installed")


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs, two workers."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for attempt in range(3):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                resources={"TPU": 4},  # a number to Ray
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=2**27,
            )
            break
        except Exception as error:
            # Ray gives itself 30 seconds, which a busy machine may not have.
            if attempt == 2 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Squares:
    """Squares of numbers; some of them first kill their worker, or fail."""

    folder: Path
    dies_at: int = -1
    deaths: int = 1
    fails_at: int = -1

    def __call__(self) -> Worker:
        prepared = os.getpid()

        def square(piece: int) -> dict[str, Any]:
            if piece == self.dies_at and len(list(self.folder.glob("death*"))) < self.deaths:
                (self.folder / f"death{os.getpid()}").touch()
                os._exit(1)
            if piece == self.fails_at:
                raise DataError(f"piece {piece} cannot be squared")
            return {"square": piece**2, "prepared": prepared == os.getpid()}

        return square


@needs_ray
@pytest.mark.long
@pytest.mark.parametrize("keeps", [False, True])
def test_pieces_come_back_in_order_also_where_a_worker_dies(cluster, tmp_path, keeps):
    work = Work("squares", 5, Squares(tmp_path, dies_at=2), keeps=keeps)
    found = RayExecutor().run(work)
    assert found == [{"square": piece**2, "prepared": True} for piece in range(5)]
    assert len(list(tmp_path.glob("death*"))) == 1


@needs_ray
@pytest.mark.long
def test_errors_of_ours_arrive_as_they_were_raised(cluster, tmp_path):
    with pytest.raises(DataError, match="piece 1 cannot be squared"):
        RayExecutor().run(Work("squares", 3, Squares(tmp_path, fails_at=1)))


@needs_ray
@pytest.mark.long
def test_a_piece_that_always_kills_its_worker_ends_the_run(cluster, tmp_path):
    work = Work("squares", 2, Squares(tmp_path, dies_at=1, deaths=1000))
    with pytest.raises(JaxrecipesError, match="squares: piece 1 lost its worker 4 times"):
        RayExecutor().run(work)
    assert len(list(tmp_path.glob("death*"))) == 1 + RETRIES


@dataclass(frozen=True)
class Given:
    """Tells what a piece was given."""

    def __call__(self) -> Worker:
        import ray

        context = ray.get_runtime_context()
        variables = context.runtime_env.get("env_vars", {})
        return lambda _: {"given": context.get_assigned_resources(), "variables": variables}


@needs_ray
@pytest.mark.long
def test_accelerators_go_to_the_stages_that_they_make_faster(cluster):
    executor = RayExecutor(cpus=0.5, tpus=4)
    (found,) = executor.run(Work("embed", 1, Given(), accelerator=True, keeps=True))
    assert (found["given"]["CPU"], found["given"]["TPU"]) == (0.5, 4)
    assert found["variables"] == {}
    (found,) = executor.run(Work("merge", 1, Given(), memory=2**20))
    assert "TPU" not in found["given"] and found["given"]["memory"] == 2**20
    assert found["variables"] == {"JAX_PLATFORMS": "cpu"}


# One stage whose workers are actors, one of tasks, and the last.
DEADLY = ("embed", "merge", "paths")


@dataclass(frozen=True)
class DiesOnce:
    """The worker of a stage; in deadly ones the first piece kills whoever tries it first."""

    work: Work
    folder: Path

    def __call__(self) -> Worker:
        worker = self.work.make_worker()

        def make(piece: int) -> dict[str, Any]:
            marker = self.folder / f"{self.work.name}-died"
            if piece == 0 and self.work.name in DEADLY and not marker.exists():
                marker.touch()
                os._exit(1)
            return worker(piece)

        return make


@dataclass(frozen=True)
class DeadlyExecutor:
    """Has a worker die in the deadly stages."""

    executor: Executor
    folder: Path

    def run(self, work: Work) -> list[dict[str, Any]]:
        return self.executor.run(replace(work, make_worker=DiesOnce(work, self.folder)))


@needs_ray
@pytest.mark.long
def test_the_output_is_that_of_the_local_executor_though_workers_die(cluster, tmp_path):
    encoder = random_encoder("tiny-bert", seed=0)
    # More than one index and one shard of queries, whose blocks are 16,384 and 8192 documents.
    settings = Settings(
        shard_documents=8192,
        index_documents=16_384,
        partition_documents=6000,
        search_again=False,
    )
    corpus = write_corpus(tmp_path / "corpus", make_documents(17_000))
    here, there, deaths = tmp_path / "here", tmp_path / "there", tmp_path / "deaths"
    for folder in (here, there, deaths):
        folder.mkdir()
    local = run_stages(corpus, here, encoder, LocalExecutor(), settings)
    executor = DeadlyExecutor(RayExecutor(), deaths)
    remote = run_stages(corpus, there, encoder, executor, settings)
    assert_same(remote, local)
    assert len(local["removed"]) > 300
    died = {path.name.removesuffix("-died") for path in deaths.iterdir()}
    assert died == set(DEADLY)
    # The manifests, too: who made the vectors does not show.
    manifests = [(folder / "embeddings" / "manifest.json").read_bytes() for folder in (here, there)]
    assert manifests[0] == manifests[1]


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrecipes\[ray\]'.*executor: local"):
        RayExecutor()
