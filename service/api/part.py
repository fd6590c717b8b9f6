"""A part of a generation that waits to be written: tokens gather in it until the writer takes it.

So a fast reader gets each token at once, and a slow one gets in one message what has come meanwhile. Event loop only.
"""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.engine.jobs import Generated, GenerateJob


class Part:
    """Tokens of one generation, in order. names: the target vocabulary."""

    __slots__ = ("_log_probabilities", "_names", "_token_ids", "finish_reason", "is_taken", "position")

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._token_ids: list[int] = []
        self._log_probabilities: list[float | None] = []
        self.position = 0
        self.finish_reason = pb.FINISH_REASON_UNSPECIFIED
        self.is_taken = False

    def __len__(self) -> int:
        return len(self._token_ids)

    def add(self, result: Generated) -> None:
        """Adds one step of the generation. Only while the part is not taken."""
        if result.token is not None:
            self._token_ids.append(result.token)
            self._log_probabilities.append(result.log_probability)
        self.position = result.position
        self.finish_reason = convert.finish_reason(result.finish_reason)

    def take(self) -> pb.Generated:
        """The message; nothing can be added from now on."""
        self.is_taken = True
        names = self._names
        pairs = zip(self._token_ids, self._log_probabilities, strict=True)
        tokens = [pb.Token(id=token, text=names[token], log_probability=p) for token, p in pairs]
        return pb.Generated(tokens=tokens, finish_reason=self.finish_reason)


class Parted:
    """A generation under way, and the part of it that was begun last."""

    __slots__ = ("job", "part")

    def __init__(self, job: GenerateJob) -> None:
        self.job = job
        self.part: Part | None = None
