"""Draws the diagram of a session's life in docs/architecture.md from its table."""

from __future__ import annotations

from service.sessions.lifecycle import OVER, TABLE, Action, Event, State


def diagram() -> str:
    """Returns the table as a Mermaid state diagram.

    An event that keeps the state is left out when it only defers, reads, cancels, detaches or resumes: it is legal in
    every state before ENDING. Each way to end is drawn once, from the composite state `open`.
    """
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), transition in TABLE.items():
        is_quiet = transition.state is state and transition.actions[:1] != (Action.SUBMIT,)
        if is_quiet and Action.WRITE_STATE not in transition.actions:
            continue
        source = "open" if transition.state in OVER and state not in OVER and event is not Event.FAIL else state.value
        names = arrows.setdefault((source, transition.state.value), [])
        if event.value not in names:
            names.append(event.value)
    inside = {state.value for state in State if state not in OVER}
    lines = ["stateDiagram-v2", "    [*] --> opening", "    state open {"]
    lines += [f"        {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items() if {a, b} <= inside]
    lines += ["    }"]
    lines += [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items() if not {a, b} <= inside]
    return "\n".join([*lines, "    ended --> [*]"])
