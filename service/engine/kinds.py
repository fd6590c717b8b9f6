"""Lists the kinds of jobs of one lane, and the handler that begins each. `step_batches` begins jobs of many lanes."""

from __future__ import annotations

from functools import partial

from service.engine.generations import ActiveEncode, begin_generation
from service.engine.history import History
from service.engine.jobs import EncodeJob, GenerateJob, ScoreJob, SearchJob
from service.engine.searches import CopyRow, begin_score, begin_search
from service.engine.stepper import Stepper


def add_kinds(stepper: Stepper, copy_row: CopyRow, history: History) -> None:
    """Registers the kinds of jobs that the stepper does not implement. copy_row: copies a row's state to others."""
    stepper.add(EncodeJob, partial(ActiveEncode, stepper))
    stepper.add(GenerateJob, partial(begin_generation, stepper, history))
    stepper.add(SearchJob, partial(begin_search, stepper, history))
    stepper.add(ScoreJob, partial(begin_score, stepper, copy_row))
