"""Where the shards of a build are worked: here, one after another, or as tasks of a Ray cluster."""

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import starmap
from typing import Any, Protocol, TypeVar

from halflife import shards
from halflife.errors import InputError, shown

Result = TypeVar("Result")

ADDRESS = "RAY_ADDRESS"
PATIENCE_S = 5.0  # for a first answer of a cluster: Ray itself tries for minutes
INSTEAD = "or set data.engine=local"


class Engine(Protocol):
    """Works on shards and hands out the results in their order, however they are worked.

    Args:
        work: a function of `halflife.shards`.
        pieces: its arguments for each shard, made one after another, so that few are in memory.
    """

    def __call__(
        self, work: Callable[..., Result], pieces: Iterable[tuple[Any, ...]], /
    ) -> Iterator[Result]: ...


def local(work: Callable[..., Result], pieces: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """Each shard here, when its result is asked for.

    >>> list(local(pow, [(2, 3), (3, 2)]))
    [8, 9]
    """
    return starmap(work, pieces)


def on_ray(work: Callable[..., Result], pieces: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """Each shard as a task of the cluster this process is connected to.

    Arrays travel there and back through Ray's object store and the code of `halflife.shards` with them: the
    nodes share no disk, and need nothing of ours installed. A shard whose worker is lost, or its result
    before it came here, is worked again from the same arrays, which Ray keeps until then.

    Raises:
        InputError: when workers are lost again and again.
    """
    import ray

    task = ray.remote(work)
    most = int(ray.cluster_resources()["CPU"]) + 1  # one more waits for the first worker that is free
    waiting: deque[Any] = deque()

    def first() -> Result:
        try:
            return ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError:
            raise  # what the work itself raised
        except ray.exceptions.RayError as error:
            raise InputError(
                "data.engine=ray must keep a worker until its shard is done, got "
                f"{type(error).__name__} again and again; look at the memory of its nodes, {INSTEAD}"
            ) from error

    for piece in pieces:
        waiting.append(task.remote(*piece))
        if len(waiting) == most:
            yield first()
    while waiting:
        yield first()


@contextmanager
def started(name: str) -> Iterator[Engine]:
    """The engine of one build, which for `ray` is connected as long as the context lasts.

    The cluster is that of RAY_ADDRESS; where it is not set, the one `ray start` made on this machine, or else
    one of this machine alone, started here and stopped again. A process that is connected stays so.

    Args:
        name: `local` or `ray`.

    Raises:
        InputError: without Ray, or without a cluster that can work.
    """
    if name == "local":
        yield local
        return
    try:
        import ray
    except ImportError:
        raise InputError(
            "data.engine=ray must find the package ray, got none; run pip install 'halflife-rec[ray]', "
            f"{INSTEAD}"
        ) from None
    ray.cloudpickle.register_pickle_by_value(shards)
    ours, handler = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    try:
        if ours:
            _connect(ray)
        if "CPU" not in ray.cluster_resources():
            raise InputError(
                f"the Ray cluster must have at least 1 CPU (count), got 0; start a worker there, {INSTEAD}"
            )
        yield on_ray
    finally:
        if ours:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray has set its own


def _connect(ray: Any) -> None:
    """Connect this process to the cluster, without a dashboard, reports of usage or the workers' output."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get(ADDRESS)
    try:
        host, _, port = (address or "").rpartition(":")
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"{ADDRESS} must be the HOST:PORT of a running Ray cluster, or not set, for this machine alone, "
            f"got {shown(address)} ({error}); correct it, set RAY_AUTH_MODE=token where the cluster asks for "
            f"a token, {INSTEAD}"
        ) from error
