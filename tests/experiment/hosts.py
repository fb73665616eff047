"""Starts the same command as several processes that stand for hosts, on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SILENT_SECONDS = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_hosts(
    arguments: Sequence[str],
    logs: Path,
    *,
    hosts: int,
    devices: int,
    cache: Path,
    different: dict[int, Sequence[str]] | None = None,
) -> list[subprocess.Popen]:
    """Starts `jaxrecipes run` on each host; host n prints into `logs/n.log`.

    Args:
        arguments: After `run`.
        logs: A folder.
        hosts: Number of processes.
        devices: Simulated devices of each.
        cache: Compilation cache.
        different: More arguments for some hosts.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for index in range(hosts):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAXRECIPES_SILENT_HOST_SECONDS": str(SILENT_SECONDS),
            "JAXRECIPES_JOIN_SECONDS": "60",
        }
        if hosts > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(hosts),
                "JAX_PROCESS_ID": str(index),
            }
        with (logs / f"{index}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "jaxrecipes", "run"),
                        *arguments,
                        *(different or {}).get(index, ()),
                    ],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def wait_for(processes: Sequence[subprocess.Popen], timeout: float = 400) -> list[int]:
    """Returns the exit codes; kills what does not end in time."""
    try:
        return [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
