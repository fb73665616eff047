"""Several hosts, one run: the same command on each, one of them writes, all agree or all end.

The hosts talk through the key-value store of JAX's coordination service, and not through device
collectives: those hang when a host is missing. Every host tells the others every few seconds that
it is there; a host that fails says why; a host that falls silent is noticed. In each case every
other host ends with a message that names it, instead of waiting for ever.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxrecipes.errors import ConfigError, UsageError
from jaxrecipes.failures import describe_failure
from jaxrecipes.supervise import supervise

Result = TypeVar("Result")

_BEAT_SECONDS = 2.0
_SILENT_SECONDS = float(os.environ.get("JAXRECIPES_SILENT_HOST_SECONDS", "60"))
_FOR_EVER_MILLISECONDS = 7 * 24 * 3600 * 1000
# A lost host is like a preemption: the last saved state is whole, the same command goes on.
_LOST_HOST_EXIT_CODE = 75
# Steps that the hosts may be apart, because a host only waits for the result of the step before.
_STEPS_APART = 4


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run.

    Attributes:
        index: This host.
        count: Number of hosts.
        client: Client of JAX's coordination service; None for one host.
        ended: Set when this host leaves, so that it stops watching the others.
    """

    index: int = 0
    count: int = 1
    client: Any = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_first(self) -> bool:
        """Whether this host writes what is written once."""
        return self.index == 0

    def first(self, topic: str, function: Callable[[], Result]) -> Result:
        """Calls a function on the first host, then on all others, which find its work done.

        Args:
            topic: Unique in the run.
            function: Leaves an artifact, or finds it.

        Returns:
            What the function returned on this host.
        """
        if self.is_first:
            result = function()
            self._set(f"first/{topic}", "done")
            return result
        self._get(f"first/{topic}")
        return function()

    def only_first(self, topic: str, function: Callable[[], Any]) -> None:
        """Calls a function on the first host alone, while the others wait."""
        if self.is_first:
            function()
            self._set(f"first/{topic}", "done")
        else:
            self._get(f"first/{topic}")

    def say(self, topic: str, function: Callable[[], str]) -> str:
        """Returns on every host what a function returns on the first."""
        if self.count == 1:
            return function()
        if self.is_first:
            value = function()
            self._set(f"say/{topic}", value)
            return value
        return self._get(f"say/{topic}")

    def agree(self, topic: str, values: Mapping[str, str]) -> None:
        """Makes sure that every host has the same values.

        Args:
            topic: Unique in the run.
            values: Name -> value.

        Raises:
            ConfigError: They differ; names hosts, what differs and how.
        """
        if self.count == 1:
            return
        own = {"host": socket.gethostname(), **values}
        self._set(f"agree/{topic}/{self.index}", json.dumps(own))
        said = [json.loads(self._get(f"agree/{topic}/{index}")) for index in range(self.count)]
        differing = [
            f"host {index} ({there['host']}) has {name} {there.get(name)!r}, host 0 "
            f"({said[0]['host']}) has {said[0].get(name)!r}"
            for index, there in enumerate(said)
            for name in values
            if there.get(name) != said[0].get(name)
        ]
        if differing:
            raise ConfigError(
                "the hosts of this run disagree: " + "; ".join(differing) + ". Start the same "
                "command with the same code, config and data on every host"
            )

    def barrier(self, topic: str) -> None:
        """Waits until every host is here."""
        if self.client is not None:
            self.client.wait_at_barrier(f"barrier/{topic}", _FOR_EVER_MILLISECONDS)

    def should_stop(self, topic: str, done: int, signal_number: int | None) -> int | None:
        """Says after a step whether all hosts stop here, because one of them was told to.

        The host that was told names a step that no host has reached yet.

        Args:
            topic: Of the training, unique in the run.
            done: Steps done on this host.
            signal_number: The signal that this host got, or None.

        Returns:
            The signal to answer now, or None.
        """
        if self.client is None:
            return signal_number
        asked = self._try_get(f"stop/{topic}")
        if asked is None and signal_number is not None:
            self._set(f"stop/{topic}", f"{done + _STEPS_APART} {int(signal_number)}")
            asked = self._try_get(f"stop/{topic}")
        if asked is None:
            return None
        step, number = map(int, asked.split())
        return number if done >= step else None

    def asked_to_stop(self, topic: str) -> int | None:
        """Says after the last step whether any host was told to stop; all hosts get one answer."""
        if self.client is None:
            return None
        self.barrier(f"{topic}/last step")
        asked = self._try_get(f"stop/{topic}")
        return None if asked is None else int(asked.split()[1])

    def fail(self, error: BaseException) -> None:
        """Tells the others why this host ends, and gives them time to end before it is gone."""
        if self.client is None:
            return
        self.ended.set()
        failure = describe_failure(error)
        message = {"code": failure.exit_code, "message": failure.message}
        self._set(f"ended/{self.index}", json.dumps(message))
        time.sleep(3 * _BEAT_SECONDS)

    def explain(self, error: BaseException) -> None:
        """Waits, after a collective failed, until it is known which host is missing.

        A device collective says that a connection broke, not whose. The watch finds the host and
        ends this process with its name; where all hosts are there the error stands as it is.
        """
        text = str(error)
        broken = ("Gloo", "Connection", "UNAVAILABLE", "heartbeat", "DEADLINE")
        if self.client is not None and any(word in text for word in broken):
            self.ended.wait(_SILENT_SECONDS + 3 * _BEAT_SECONDS)

    def leave(self) -> None:
        """Waits for the others' end and leaves."""
        if self.client is None:
            return
        import jax

        self.barrier("leave")
        self.ended.set()
        jax.distributed.shutdown()

    def _set(self, key: str, value: str) -> None:
        if self.client is not None:
            self.client.key_value_set(f"jaxrecipes/{key}", value, allow_overwrite=True)

    def _get(self, key: str) -> str:
        return self.client.blocking_key_value_get(f"jaxrecipes/{key}", _FOR_EVER_MILLISECONDS)

    def _try_get(self, key: str) -> str | None:
        for name, value in self.client.key_value_dir_get("jaxrecipes/stop/"):
            if name == f"jaxrecipes/{key}":
                return value
        return None


ONE_HOST = Hosts()


def join_hosts() -> Hosts:
    """Joins the other hosts of this run, if it has any.

    On a Cloud TPU nothing has to be said. Elsewhere, as in tests with several processes on one
    machine, the environment says who is there: JAX_COORDINATOR_ADDRESS (host:port of host 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Returns:
        The hosts.

    Raises:
        UsageError: The environment is incomplete, or the hosts cannot be reached.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given and not _on_tpu():
        return ONE_HOST
    if given and len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise UsageError(
            f"{', '.join(given)} is set, {missing} is not; set all of {', '.join(names)}, or none"
        )
    supervise(f"host 0 is gone, or its network; {_GO_ON}", _LOST_HOST_EXIT_CODE)
    import jax
    from jax._src import distributed

    try:
        # Our own watch, below, notices a lost host first, and says what to do.
        patience: dict[str, Any] = {
            "heartbeat_timeout_seconds": int(10 * _SILENT_SECONDS),
            "shutdown_timeout_seconds": 10,
            "initialization_timeout": int(os.environ.get("JAXRECIPES_JOIN_SECONDS", "300")),
        }
        if given:
            jax.distributed.initialize(
                given[names[0]], int(given[names[1]]), int(given[names[2]]), **patience
            )
        else:
            jax.distributed.initialize(**patience)
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        where = given or "this TPU"
        raise UsageError(
            f"the hosts of {where} could not be joined: {text}. Start the same command on every "
            "host, and let the hosts reach each other"
        ) from error
    # There is no public way to the store; the client's methods are those of jaxlib.
    client = distributed.global_state.client
    hosts = Hosts(jax.process_index(), jax.process_count(), client)
    if hosts.count == 1:
        return ONE_HOST
    threading.Thread(target=_watch, args=(hosts,), name="hosts", daemon=True).start()
    return hosts


def _on_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in wanted and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _watch(hosts: Hosts) -> None:
    """Tells the others that this host is there, and ends it when another is not."""
    heard: dict[str, tuple[str, float]] = {}
    beat, answered = 0, time.monotonic()
    while not hosts.ended.wait(_BEAT_SECONDS):
        beat += 1
        try:
            hosts._set(f"alive/{hosts.index}", f"{beat} {socket.gethostname()}")
            alive = dict(hosts.client.key_value_dir_get("jaxrecipes/alive/"))
            ended = dict(hosts.client.key_value_dir_get("jaxrecipes/ended/"))
        except Exception as error:  # jaxlib's own classes
            if time.monotonic() - answered > _SILENT_SECONDS / 4:
                first_line = str(error).splitlines()[0][:200]
                _end(hosts, f"host 0 is gone ({first_line}); {_GO_ON}", _LOST_HOST_EXIT_CODE)
            continue
        now = answered = time.monotonic()
        for key, value in ended.items():
            said = json.loads(value)
            index = key.rsplit("/", 1)[1]
            # This host may be about to say the same by itself.
            if not hosts.ended.wait(_BEAT_SECONDS):
                _end(hosts, f"host {index} ended: {said['message']}", said["code"])
        for key, value in alive.items():
            before = heard.get(key)
            if before is None or before[0] != value:
                heard[key] = (value, now)
            elif now - before[1] > _SILENT_SECONDS:
                index, name = key.rsplit("/", 1)[1], value.split(" ", 1)[1]
                message = f"host {index} ({name}) has been silent for {_SILENT_SECONDS:.0f} s"
                _end(hosts, f"{message}; {_GO_ON}", _LOST_HOST_EXIT_CODE)


_GO_ON = (
    "every host ends. The last saved state is whole: start the same command on every host again "
    "to go on"
)


def _end(hosts: Hosts, message: str, code: int) -> None:
    if hosts.ended.is_set():
        return
    # The main thread may wait in a collective for ever, where no exception reaches it.
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)
