"""A version's graphs first run in a child process with limits; the server continues whatever happens to that
process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from service.engine.limits import EngineLimits
from service.repository.repository import Problem
from service.repository.runtime import RuntimeOptions
from service.trial import TrialLimits, try_version
from tests.bundles import write_language_model
from tests.end_to_end.test_bad_bundles import set_digest

KEY = ("tiny-lm", 1)
ENOUGH = TrialLimits(memory_mib=512, time_s=60.0)
FEW = EngineLimits(max_batch_rows=4)


def add_an_allocation(folder: Path, num_numbers: int) -> None:
    """Makes the step graph add up `num_numbers` zeros for each token. The logits stay the same."""
    graph = onnx.load(folder / "step.onnx")
    last = next(node for node in graph.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "logits_before"
    sizes = numpy_helper.from_array(np.array([num_numbers, 1], np.int64), "sizes")
    graph.graph.initializer.append(sizes)
    graph.graph.node.extend(
        [
            # without the shape of the input, the sum would be computed once, when the graph is loaded
            helper.make_node("Shape", ["tokens"], ["tokens_shape"]),
            helper.make_node("Mul", ["tokens_shape", "sizes"], ["zeros_shape"]),
            helper.make_node("ConstantOfShape", ["zeros_shape"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["logits_before", "nothing"], ["logits"]),
        ]
    )
    (folder / "step.onnx").write_bytes(graph.SerializeToString())
    set_digest(folder, "step.onnx")


def attempt(models: Path, trial: TrialLimits = ENOUGH) -> Problem | None:
    return try_version(models, KEY, RuntimeOptions(), FEW, trial)


def test_a_good_version_passes(tmp_path: Path) -> None:
    write_language_model(tmp_path)
    assert attempt(tmp_path) is None


def test_a_version_that_cannot_be_loaded_is_a_problem_in_the_servers_words(tmp_path: Path) -> None:
    (write_language_model(tmp_path) / "target.txt").unlink()
    assert attempt(tmp_path) == Problem(*KEY, "target.txt cannot be read: No such file or directory")


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is looked up in /proc")
def test_a_graph_is_refused_before_it_takes_gigabytes(tmp_path: Path) -> None:
    add_an_allocation(write_language_model(tmp_path / "little"), 1000)
    add_an_allocation(write_language_model(tmp_path / "much"), 2**31)
    assert attempt(tmp_path / "little") is None, "the graph is good but for what it takes"
    reason = "its graphs need more than 512 MiB of memory (check_memory_mib)"
    assert attempt(tmp_path / "much") == Problem(*KEY, reason)


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is looked up in /proc")
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (str(400 * 2**20), "280 MiB of memory, all that the container has left"),
        (str(2**40), "512 MiB of memory (check_memory_mib)"),
        ("max", "512 MiB of memory (check_memory_mib)"),
    ],
)
def test_the_memory_left_in_the_container_is_the_limit(
    limit: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.stat").write_text(f"anon {100 * 2**20}\nfile {2**40}\n")
    monkeypatch.setattr("service.trial._GROUP", tmp_path)
    add_an_allocation(write_language_model(tmp_path / "models"), 2**31)
    assert attempt(tmp_path / "models") == Problem(*KEY, f"its graphs need more than {reason}")


def test_a_graph_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    write_language_model(tmp_path)
    reason = "its graphs were not loaded and run once within 0.01 s (check_time_s)"
    assert attempt(tmp_path, TrialLimits(512, 0.01)) == Problem(*KEY, reason)


def test_a_graph_that_cannot_be_run_is_a_problem(tmp_path: Path) -> None:
    add_an_allocation(write_language_model(tmp_path), -1)
    problem = attempt(tmp_path)
    assert problem is not None
    assert problem.reason.startswith("its engine cannot start: ")


def test_a_process_that_cannot_be_started_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    reason = "the trial run of its graphs cannot be started: No such file or directory"
    assert attempt(tmp_path) == Problem(*KEY, reason)


def test_an_unwanted_trial_is_stopped(tmp_path: Path) -> None:
    write_language_model(tmp_path)
    answers = iter([True, True, False, False])
    problem = try_version(tmp_path, KEY, RuntimeOptions(), FEW, ENOUGH, is_wanted=lambda: next(answers))
    assert problem == Problem(*KEY, "the trial run of its graphs was stopped: the server is shutting down")


def test_a_killed_trial_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    reason = "the trial run of its graphs was killed, perhaps because memory ran out"
    assert attempt(tmp_path) == Problem(*KEY, reason)


def test_a_trial_that_ends_without_a_report_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert attempt(tmp_path) == Problem(*KEY, "the trial run of its graphs ended with exit code 1")
