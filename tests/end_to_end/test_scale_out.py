"""Three replicas with Redis, behind the deployed Envoy: replicas come and go under load, and nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carousel import Client
from examples.local_envoy import LocalEnvoy, local_envoy
from examples.local_service import LocalService
from examples.smoke import across
from tests.end_to_end.test_operation import scrape
from tests.services import local_service, program, redis_server
from tests.waiting import wait_until


class Fleet:
    """Replicas, and the Envoy in front of them."""

    def __init__(self, stack: ExitStack, models: Path, folder: Path) -> None:
        redis = stack.enter_context(redis_server(folder))
        key = folder / "snapshot.key"
        key.write_bytes(os.urandom(32))
        self._flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "shutdown-grace-s": 3}
        self._flags["max-batch-rows"] = 16  # it starts sooner
        self._stack, self._models = stack, models
        self.replicas: list[LocalService] = []
        for _ in range(3):
            self.add()
        self.envoy: LocalEnvoy = stack.enter_context(local_envoy(self._ports(), folder))

    def add(self) -> LocalService:
        """Starts one more replica. Envoy does not know it yet."""
        replica = self._stack.enter_context(local_service(self._models, self._flags))
        self.replicas.append(replica)
        return replica

    def remove(self, replica: LocalService) -> None:
        """Stops a replica, which drains first, and removes it from Envoy's list."""
        assert replica.stop() == 0
        self.replicas.remove(replica)
        self.route()

    def kill(self, replica: LocalService) -> None:
        """Kills a replica. Envoy is not notified, and must detect it by itself."""
        replica.kill()
        self.replicas.remove(replica)

    def route(self) -> None:
        """Gives Envoy the list of replicas."""
        self.envoy.route_to(self._ports())

    def _ports(self) -> list[int]:
        return [int(replica.target.rpartition(":")[2]) for replica in self.replicas]


@pytest.fixture
def fleet(g2p_repository: Path, tmp_path: Path) -> Iterator[Fleet]:
    program("envoy")
    with ExitStack() as stack:
        yield Fleet(stack, g2p_repository, tmp_path)


def counted(replica: LocalService, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (sample, has), value in scrape(replica).items() if sample == name and wanted <= set(has))


@contextmanager
def fed_across(target: str) -> Iterator[Future[str]]:
    """Feeds sessions until the block ends, also when it fails. Yields a future of the result of `across`."""
    is_over = Event()
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(across, target, is_over.is_set)
        try:
            yield found
        finally:
            is_over.set()


def holder(fleet: Fleet) -> tuple[LocalService, float]:
    """Waits until a replica has sessions. Returns the replica with the most sessions, and their number."""

    def found() -> tuple[LocalService, float] | None:
        held, index = max((counted(one, "carousel_sessions_active"), n) for n, one in enumerate(fleet.replicas))
        return (fleet.replicas[index], held) if held else None

    return wait_until(found, 30.0)


def test_a_replica_that_is_added_and_one_that_is_removed_lose_nothing(fleet: Fleet) -> None:
    with fed_across(fleet.envoy.target) as found:
        holder(fleet)
        added = fleet.add()
        fleet.route()
        leaving, held = holder(fleet)
        elsewhere = [replica for replica in fleet.replicas if replica is not leaving]
        before = sum(counted(replica, "carousel_sessions_resumed_total", source="store") for replica in elsewhere)
        fleet.remove(leaving)
    assert "the same bits as at once" in found.result(60)
    moved = sum(counted(replica, "carousel_sessions_resumed_total", source="store") for replica in elsewhere) - before
    assert moved >= held > 0, "each of its sessions has gone on elsewhere"
    with Client(fleet.envoy.target) as client:
        for number in range(40):
            with client.session("g2p-en", source="gate", session_id=f"later-{number}"):
                pass
    assert counted(added, "carousel_sessions_opened_total") > 0, "it has its share of what is new"


def test_a_replica_that_is_killed_is_not_seen_by_new_calls(fleet: Fleet) -> None:
    """The killed replica's sessions continue on others from their checkpoints. Calls that open other sessions never
    fail."""
    with fed_across(fleet.envoy.target) as found, Client(fleet.envoy.target, timeout=10.0) as client:
        fleet.kill(holder(fleet)[0])
        until, count = time.monotonic() + 3.0, 0
        while time.monotonic() < until:
            call = client.generate("g2p-en", "gate", resume_timeout=0.0)
            assert [token.text for token in call] == ["G", "EY", "T"]
            count += 1
        assert count > 10
    assert "the same bits as at once" in found.result(60)


def test_all_calls_of_a_session_go_to_one_replica(fleet: Fleet) -> None:
    """The session's id alone selects the replica, also for calls on other connections."""
    for number in range(12):
        name = f"one-{number}"
        for source, expected in (("opened", 1), ("again", 1)):
            with Client(fleet.envoy.target) as client:
                if source == "opened":
                    client.session("g2p-en", source="gate", session_id=name, on_disconnect="keep").feed(["G"])
                else:
                    assert client.sessions.get(name).position == expected
                    with client.resume(name) as session:
                        session.feed(["EY"])
    from_store = sum(counted(one, "carousel_sessions_resumed_total", source="store") for one in fleet.replicas)
    from_memory = sum(counted(one, "carousel_sessions_resumed_total", source="memory") for one in fleet.replicas)
    assert (from_store, from_memory) == (0, 12)
    with Client(fleet.envoy.target) as client:
        for number in range(80):  # so many that each replica gets some of them
            client.session("g2p-en", source="gate", session_id=f"shared-{number}", on_disconnect="free").close()
    assert sum(counted(one, "carousel_sessions_opened_total") > 0 for one in fleet.replicas) == 3, "they share"


def test_envoy_reports_that_there_is_no_replica(fleet: Fleet) -> None:
    for replica in list(fleet.replicas):
        fleet.kill(replica)
    with grpc.insecure_channel(fleet.envoy.target) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
