"""What is measured against the service keeps up with it: the servers of the benchmarks start, and answer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.processes import server
from carousel import Client


def test_the_service_that_keeps_no_metric_serves(tiny_repository: Path) -> None:
    with server("silent", str(tiny_repository)) as target, Client(target) as client:
        with client.session("tiny-endless") as session:
            session.feed([2, 3])
            assert session.position == 2
        assert len(list(client.generate("tiny-endless", max_tokens=5))) == 5
