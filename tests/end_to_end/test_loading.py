"""A version that is added to a running server's folder is tried in a separate process before it is served."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from carousel import Client, ModelStatus, UnavailableError
from tests.bundles import write_language_model
from tests.services import local_service
from tests.test_trial import add_an_allocation
from tests.waiting import wait_until
from tests.wire.conformance.conftest import require

TOLD = "its graphs need more than 256 MiB of memory (check_memory_mib)"


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is looked up in /proc")
@pytest.mark.parametrize("wire", ["grpcio", "envoy"])
def test_a_version_that_needs_gigabytes_is_refused_and_the_server_continues(
    wire: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(wire)
    monkeypatch.setenv("PATH", str(tmp_path / "no-other-python"))
    write_language_model(tmp_path, model="lm")
    flags = {"wire": wire, "check-memory-mib": 256, "max-batch-rows": 4, "watch-models-s": 0.05}
    with local_service(tmp_path, flags) as service, Client(service.target) as client, client.session("lm") as session:
        made = write_language_model(tmp_path / "made", model="lm", version=2, seed=2)
        add_an_allocation(made, 2**31)
        made.rename(tmp_path / "lm" / "2")
        wait_until(lambda: any(line["event"] == "model.failed" for line in service.log), 60.0)
        (loaded,) = client.load_models("lm", 2)
        assert (loaded.status, loaded.problem) == (ModelStatus.FAILED, TOLD)
        with pytest.raises(UnavailableError, match="check_memory_mib"):
            client.session("lm", version=2)
        assert session.feed([1]).token is not None
        (tmp_path / "lm" / "2").rename(tmp_path / ".refused")
        write_language_model(tmp_path, model="lm", version=2, seed=2)
        wait_until(lambda: any(line["event"] == "model.loaded" and line["version"] == 2 for line in service.log), 60.0)
        with client.session("lm", version=2) as other:
            assert other.feed([1]).token is not None
        assert [line["version"] for line in service.log if line["event"] == "model.failed"] == [2]
