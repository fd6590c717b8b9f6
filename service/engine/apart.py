"""Divides a batch whose run raised an exception, until each row that cannot run is alone. The beams of a search
stay together.

So bad input of one row, such as an index that the model does not have, costs other sessions only another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from service.engine.runner import Ran
from service.engine.scheduler import Batch, Group, RowJob


def run_apart(
    batch: Batch,
    error: Exception,
    run: Callable[[Batch], Ran],
    commit: Callable[[Batch, Ran, float], None],
    fail: Callable[[Batch, Exception], None],
) -> None:
    """Runs the one or two parts of a batch, and divides a part again if it raises.

    error: the exception that the batch raised.
    run: may raise what ONNX Runtime raises, and has changed nothing then.
    commit: called with each part that ran, its results, and the start of its run (`perf_counter`).
    fail: called with each part that cannot run, and the exception.
    """
    parts = _divided(batch)
    if not parts:
        fail(batch, error)
    for part in parts:
        began = perf_counter()
        try:
            ran = run(part)
        except Exception as its_own:
            run_apart(part, its_own, run, commit, fail)
        else:
            commit(part, ran, began)


def _divided(batch: Batch) -> list[Batch]:
    """Returns one or two batches of the jobs and groups that are still active; none when it cannot be divided."""
    members: list[RowJob | Group] = [job for job in batch.jobs if job.lane.active is job]
    for group in batch.groups:
        members += _rows_apart(group)
    if len(members) < 2 and len(batch.jobs) + len(batch.groups) < 2:
        return []
    widths = {id(job): width for job, width in zip(batch.jobs, batch.widths, strict=True)}
    middle = (len(members) + 1) // 2
    return [_part(batch, some, widths) for some in (members[:middle], members[middle:]) if some]


def _part(batch: Batch, members: Sequence[RowJob | Group], widths: dict[int, int]) -> Batch:
    jobs = [one for one in members if isinstance(one, RowJob)]
    groups = [one for one in members if isinstance(one, Group)]
    wide = [widths[id(job)] for job in jobs]
    num_rows = len(jobs) + sum(group.num_rows for group in groups)
    num_tokens = sum(wide) + num_rows - len(jobs)
    runs_on = any(job.runs_on for job in jobs)
    return Batch(batch.kind, jobs, wide, groups, num_rows, max(wide, default=1), num_tokens, runs_on)


def _rows_apart(group: Group) -> list[Group]:
    """Returns each row of a step batch as a group of its own. Any other group stays whole."""
    group.compact()
    if not group.places:
        return [group]
    return [
        Group(group.owner, rows, rows, rows, [token], group.fetch, group.runs_on, [place])
        for rows, token, place in zip([[row] for row in group.reads], group.tokens, group.places, strict=True)
    ]
