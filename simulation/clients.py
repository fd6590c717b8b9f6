"""A client that performs its part of the script and knows what its sessions should be.

It keeps one stream to each replica and opens a new stream when it needs one. No other client uses its ids, except those
that it contends for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from simulation.admin import Admin
from simulation.checks import Journal, Stamp
from simulation.connections import Connections
from simulation.requests import Requests
from simulation.script import Action
from simulation.system import Replica


class Client(Connections):
    """Performs actions of the script. Its arguments are those of `Connections`."""

    def __init__(
        self,
        number: int,
        replicas: list[Replica],
        journal: Journal,
        delay: Callable[[], float],
        stamps: Callable[[Replica, list[str]], Stamp],
    ) -> None:
        super().__init__(number, replicas, journal, delay, stamps)
        self._requests = Requests(self)
        self._admin = Admin(self)

    async def perform(self, action: Action) -> None:
        """Performs one action of the script."""
        args = dict(action.args)
        view = self.views[args.pop("k") % len(self.views)]
        own = getattr(self._requests, action.op, None)
        if own is not None:
            own(view, **args)
        elif action.op == "settle":
            await self.settle(view)
        elif action.op == "idle":
            await asyncio.sleep(args["duration_s"])
        else:
            await self._admin.perform(action.op, view, **args)
