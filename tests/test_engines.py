"""A build on two nodes of a Ray cluster: the bytes of the local one, whatever workers and nodes are lost."""

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from halflife import arrays, engines, impressions, shards, users
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.store import open_or_build
from halflife.tables import Tables

RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs halflife-rec[ray]")
FAIR = Negatives(per_positive=2, by="uniform", window_days=1.0, exclude_seen=False, max_positives=3, seed=0)
START = 1_700_000_000
WORK = ("events", "history_ends", "popularity")
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def read(files: list[Path], logged: bool = True) -> Tables:
    """A log of many ties in time."""
    rng = np.random.default_rng(0)
    n, shown = 3000, 600
    ids = [f"i{i:02}" for i in range(40)]
    items = pl.DataFrame({"item_id": ids}).with_columns(text=pl.lit("t"), category=pl.lit("c"))
    events = pl.DataFrame(
        {
            "user_id": [f"u{i}" for i in rng.integers(0, 150, n)],
            "item_id": rng.choice(ids, n),
            "timestamp_s": START + rng.integers(0, 500, n),
            "kind": rng.choice(["view", "click"], n),
        }
    ).with_columns(value=pl.lit(1.0))
    impressions = pl.DataFrame(
        {
            "impression_id": [f"{i:04}" for i in range(shown)],
            "user_id": [f"u{i}" for i in rng.integers(0, 160, shown)],
            "timestamp_s": START + rng.integers(0, 600, shown),
            "candidates": [rng.choice(ids, 5).tolist() for _ in range(shown)],
            "labels": [[1, 0, 0, 0, 0]] * shown,
        }
    )
    return Tables(items, events, impressions if logged else None, has_click_times=True)


def store(engine: str, cache: Path, logged: bool = True) -> tuple[str, dict[str, Any]]:
    """The key of a Store, and every file of it by name, but for how long the build took."""
    place = open_or_build(partial(read, logged=logged), [], FAIR, cache, engine=engine).directory
    files: dict[str, Any] = {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*")}
    about = json.loads(files.pop("store.json"))
    assert about.pop("build_s") > 0
    return place.name, files | {"about": about}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds are cut into about ten shards of users and as many of time."""
    monkeypatch.setattr(users, "AT_ONCE", 300)
    monkeypatch.setattr(arrays, "BUCKET_ROWS", 300)
    monkeypatch.setattr(impressions, "PART_ROWS", 60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # before Ray is imported
        from ray.cluster_utils import Cluster

        quick = {"health_check_period_ms": 500, "health_check_initial_delay_ms": 500}  # to miss a dead node
        head = {"include_dashboard": False, "_system_config": quick}
        two = Cluster(initialize_head=True, head_node_args=NODE | head)
        two.add_node(**NODE)
        patch.setenv(engines.ADDRESS, two.address)
        yield two
        two.shutdown()
    signal.signal(signal.SIGTERM, handler)  # the head node has set its own


@contextmanager
def doomed(cluster: Any, when: Path) -> Iterator[str]:
    """The id of a third node, which is killed without notice as soon as a file is there."""
    node = cluster.add_node(**NODE)
    over = threading.Event()

    def kill() -> None:
        while not when.exists() and not over.wait(0.05):
            pass
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield node.node_id
    finally:
        over.set()
        killer.join()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait until a condition holds, for a minute at most; short shards stay on one node unless they wait."""

    def wait(there: Callable[[], Any]) -> None:
        end = time.monotonic() + 60
        while not there():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)

    return wait


def test_shards_are_worked_here_one_by_one_when_they_are_asked_for() -> None:
    asked = []

    def pieces() -> Iterator[tuple[int, int]]:
        for n in range(3):
            asked.append(n)
            yield n, 2

    with engines.started("local") as engine:
        found = engine(pow, pieces())
        assert asked == []
        assert next(found) == 0
        assert asked == [0]
        assert list(found) == [1, 4]


@RAY
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("logged", [True, False], ids=["logged", "drawn"])
def test_two_nodes_build_the_same_bytes_under_the_same_key(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Any, logged: bool
) -> None:
    want = store("local", tmp_path / "local", logged)

    def noted(name: str) -> Any:
        work = getattr(shards, name)

        def on_a_node(*shard: Any) -> Any:
            import ray

            assert "halflife" not in sys.modules  # a node needs nothing of ours
            with (tmp_path / f"{name}-{ray.get_runtime_context().get_node_id()}").open("a") as file:
                file.write(".")
            until(lambda: len(list(tmp_path.glob(f"{name}-*"))) == 2)
            return work(*shard)

        return on_a_node

    for name in WORK:
        monkeypatch.setattr(shards, name, noted(name))
    assert store("ray", tmp_path / "ray", logged) == want
    nodes = {cluster.head_node.node_id} | {node.node_id for node in cluster.worker_nodes}
    assert len(nodes) == 2
    for name in WORK:
        worked = list(tmp_path.glob(f"{name}-*"))
        assert {p.name.removeprefix(f"{name}-") for p in worked} == nodes
        assert sum(len(p.read_text()) for p in worked) > 5


@RAY
@pytest.mark.usefixtures("tiny", "cluster")
def test_a_worker_killed_at_its_shard_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, died = store("local", tmp_path / "local"), tmp_path / "died"
    work = shards.events

    def killed(*shard: Any) -> Any:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*shard)

    monkeypatch.setattr(shards, "events", killed)
    assert store("ray", tmp_path / "ray") == want
    assert died.exists()


@RAY
@pytest.mark.usefixtures("tiny")
def test_a_node_lost_at_its_shard_changes_no_byte(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    want, begun = store("local", tmp_path / "local"), tmp_path / "begun"
    work = shards.events
    with doomed(cluster, begun) as lost:

        def slow_there(*shard: Any) -> Any:
            import ray

            if ray.get_runtime_context().get_node_id() == lost:
                begun.touch()
                time.sleep(600)  # gone long before
            until(begun.exists)
            return work(*shard)

        monkeypatch.setattr(shards, "events", slow_there)
        assert store("ray", tmp_path / "ray") == want
        assert begun.exists()


@RAY
@pytest.mark.slow
def test_a_result_lost_with_its_node_is_worked_out_again(cluster: Any, tmp_path: Path, until: Any) -> None:
    done, kill = tmp_path / "done", tmp_path / "kill"
    done.mkdir()
    with doomed(cluster, kill) as lost, engines.started("ray") as engine:
        import ray

        assert ray.get_runtime_context().get_node_id() != lost

        def work(n: int, many: Any) -> Any:
            for at in range(100):
                try:
                    node = ray.get_runtime_context().get_node_id()
                    (done / f"{n}-{at}-{node}").touch(exist_ok=False)
                    break
                except FileExistsError:
                    continue
            until(lambda: list(done.glob(f"*-{lost}")))
            return many + n  # too large to travel within a message

        def pieces() -> Iterator[tuple[int, Any]]:
            for n in range(3):
                yield n, np.arange(500_000)
            until(lambda: len(list(done.iterdir())) == 3)
            assert any(p.name.endswith(lost) for p in done.iterdir())
            time.sleep(0.5)  # what is worked out reaches the node's store
            kill.touch()
            until(lambda: lost not in {n["NodeID"] for n in ray.nodes() if n["Alive"]})
            yield 3, np.arange(500_000)

        found = list(engine(work, pieces()))
        assert [int(f[0]) for f in found] == [0, 1, 2, 3]
        assert all(len(f) == 500_000 for f in found)
        assert len(list(done.iterdir())) > 4  # one of them twice


@RAY
@pytest.mark.usefixtures("cluster")
def test_what_a_shard_raises_is_raised_here_and_sigterm_is_as_it_was() -> None:
    def leaky() -> None:
        raise AssertionError("a history holds an event that is not strictly before its impression")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(AssertionError, match="not strictly before"), engines.started("ray") as engine:
        list(engine(leaky, [()]))
    assert signal.getsignal(signal.SIGTERM) is before


@RAY
@pytest.mark.usefixtures("cluster")
def test_workers_that_die_at_every_try_are_a_sentence() -> None:
    def dies() -> None:
        os._exit(1)

    with pytest.raises(InputError) as caught, engines.started("ray") as engine:
        list(engine(dies, [()]))
    assert str(caught.value) == (
        "data.engine=ray must keep a worker until its shard is done, got WorkerCrashedError again and again; "
        "look at the memory of its nodes, or set data.engine=local"
    )


def refused(tmp_path: Path) -> str:
    """What a build on Ray that cannot begin says; nothing of it is left."""
    with pytest.raises(InputError) as caught:
        open_or_build(partial(read), [], FAIR, tmp_path, engine="ray")
    assert [p.suffix for p in (tmp_path / "stores").iterdir()] == [".lock"]
    return str(caught.value)


def test_without_ray_the_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(tmp_path) == (
        "data.engine=ray must find the package ray, got none; run pip install 'halflife-rec[ray]', or set "
        "data.engine=local"
    )


@RAY
def test_a_cluster_that_does_not_answer_is_a_sentence_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # a port that nobody listens at
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv(engines.ADDRESS, address)
        assert refused(tmp_path) == (
            "RAY_ADDRESS must be the HOST:PORT of a running Ray cluster, or not set, for this machine alone, "
            f"got {address} ([Errno 111] Connection refused); correct it, set RAY_AUTH_MODE=token where the "
            "cluster asks for a token, or set data.engine=local"
        )
    monkeypatch.setenv(engines.ADDRESS, "nonsense")
    assert "got nonsense (Invalid address format: nonsense)" in refused(tmp_path)


@RAY
@pytest.mark.slow
def test_without_an_address_the_command_starts_a_cluster_of_this_machine_and_prints_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["data.source.users=60", "data.source.items=48", "data.source.days=30", "pretrained=null"]
    command = [sys.executable, "-m", "halflife.build", *small, "cache_dir=cache", "out=card"]
    monkeypatch.delenv(engines.ADDRESS, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    printed = []
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # where no other test's cluster is found
        monkeypatch.setenv("RAY_TMPDIR", short)  # a socket's path may have 107 characters
        for engine in ("ray", "local"):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            done = subprocess.run(
                [*command, f"data.engine={engine}"], capture_output=True, text=True, cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr
            assert (any(Path(short).iterdir()), done.stderr) == (True, "")
            printed.append(done.stdout)
    assert printed[0] == printed[1]
