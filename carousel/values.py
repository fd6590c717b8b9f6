"""The values that calls return, which are frozen. They do not depend on protobuf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import overload

from carousel.decoding_options import DecodingOptions
from carousel.model_info import ModelInfo, ModelStatus, Port, SessionConstant, Transducer

__all__ = [
    "CloseReason",
    "DecodingOptions",
    "Emitted",
    "FinishReason",
    "Hypothesis",
    "ModelInfo",
    "ModelStatus",
    "Port",
    "SessionConstant",
    "SessionInfo",
    "SessionState",
    "StateTensor",
    "Step",
    "StepOutput",
    "TargetScore",
    "Token",
    "Transducer",
    "ValueToken",
]


class FinishReason(StrEnum):
    """Why a generation ended.

    EOS: the model chose its end token. STOP: it chose one of the stop tokens. MAX_TOKENS: it reached `max_tokens`.
    """

    UNSPECIFIED = "unspecified"
    EOS = "eos"
    MAX_TOKENS = "max_tokens"
    STOP = "stop"


class CloseReason(StrEnum):
    """Why a session was closed."""

    UNSPECIFIED = "unspecified"
    CLIENT = "client"
    DISCONNECT = "disconnect"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    FAILED = "failed"
    EXPIRED = "expired"
    MOVED = "moved"
    LOST = "lost"
    TAKEN = "taken"
    MAX_AGE = "max_age"


class SessionState(StrEnum):
    """What a session is doing."""

    UNSPECIFIED = "unspecified"
    IDLE = "idle"
    BUSY = "busy"
    GENERATING = "generating"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a vocabulary. log_probability: natural logarithm, 0 or less; None unless it was requested."""

    id: int
    text: str
    log_probability: float | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """Empty. Only a `ValueToken`, which a model that outputs values yields, has values."""
        return ()


class ValueToken(Token):
    """One step's values, for a model that outputs values. Generations yield it where others yield a token.

    It is equal to the tuple of its values, and can be unpacked and indexed like it. id is 0 and text has the values as
    text, because such a model has no vocabulary. `Generation.vectors` returns plain tuples.
    """

    __slots__ = ("_values",)
    _values: tuple[float, ...]

    def __init__(self, values: tuple[float, ...]) -> None:
        super().__init__(0, " ".join(f"{value:g}" for value in values))
        object.__setattr__(self, "_values", values)

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the step."""
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[float]:
        return iter(self._values)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...
    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        return self._values[index]

    def __eq__(self, other: object) -> bool:
        return self._values == (other._values if isinstance(other, ValueToken) else other)

    def __hash__(self) -> int:
        return hash(self._values)

    def __repr__(self) -> str:
        return f"ValueToken({self._values!r})"

    def __reduce__(self) -> tuple[type[ValueToken], tuple[tuple[float, ...]]]:
        return ValueToken, (self._values,)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The model's prediction after one step.

    position: the number of tokens consumed before. tokens: the most likely next ones, most likely first; empty if
    logits were requested. logits: [V] by token id; empty unless requested. values: for a model that outputs values.
    trace: gates and states inside the step, by name, such as `layer0.forget_gate`; empty unless requested. outputs: the
    named parts of `values`, row-major, for a model that has named parts.

    For a transducer, `tokens` are those emitted by the step to `position`, in order. num_limited: the number of encoded
    frames at which the limit of tokens per frame was reached, so that tokens may be missing.
    """

    position: int
    tokens: tuple[Token, ...] = ()
    logits: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    trace: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    num_limited: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """The answer to a feed.

    position: the session's position after it. outputs: one; with `every_position` one for each token fed; with
    `outputs=False` none; for a transducer one for each vector at which it emitted tokens. replayed: the server had
    applied this feed before, and repeats its answer.
    """

    position: int
    outputs: tuple[StepOutput, ...] = ()
    replayed: bool = False

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The candidates for the token after the last one fed, most likely first; empty if none were requested."""
        return self.outputs[-1].tokens if self.outputs else ()

    @property
    def emitted(self) -> tuple[Token, ...]:
        """The tokens of all outputs: what a transducer emitted during this feed."""
        return tuple(token for output in self.outputs for token in output.tokens)

    @property
    def token(self) -> Token:
        """The most likely next token. Raises LookupError when the feed requested logits or no outputs."""
        if not self.tokens:
            raise LookupError(
                "the answer has no tokens, because the feed had logits=True or outputs=False: see `logits`"
            )
        return self.tokens[0]

    @property
    def logits(self) -> tuple[float, ...]:
        """The logits after the last token fed, [V] by token id; empty unless requested."""
        return self.outputs[-1].logits if self.outputs else ()

    @property
    def values(self) -> tuple[float, ...]:
        """The values after the last step fed, for a model that outputs values; empty for other models."""
        return self.outputs[-1].values if self.outputs else ()

    @property
    def trace(self) -> Mapping[str, tuple[float, ...]]:
        """Gates and states inside the last step, by name; empty unless requested."""
        return self.outputs[-1].trace if self.outputs else {}


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence that a beam search found.

    tokens: with their log-probabilities, without the token that ended the sequence. log_probability: the sum over the
    tokens and the one that ended it. score: the rank: log_probability divided by length ** length_penalty.
    finish_reason: why it ended. text: for models of subwords.
    """

    tokens: tuple[Token, ...]
    score: float
    log_probability: float
    finish_reason: FinishReason
    text: str = ""


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """The result of `generate_many` for one source. source: as the program gave it.

    tokens, text, finish_reason, hypotheses: as in a generation. values: [steps] vectors, for a model that outputs
    values. error: why there is no result; None when there is one.
    """

    source: object
    tokens: tuple[Token, ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class TargetScore:
    """How likely a target is. log_probabilities: natural logarithm for each token, given the tokens before it, and with
    `with_end` for the end token after them. log_probability: their sum."""

    log_probability: float
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A live session, as its server describes it. Times are in UTC.

    durability: `none`, `checkpoint` or `strict`. checkpoint_position: the stored position; None if nothing is stored.
    attached: whether it has a stream. spilled: whether its state is only in the store, to free a slot. marks: the
    positions to which it can be rewound, oldest first.
    """

    session_id: str
    model: str
    version: int
    position: int
    state: SessionState
    open_time: datetime
    last_used_time: datetime
    variant: str
    durability: str = "none"
    checkpoint_position: int | None = None
    attached: bool = True
    spilled: bool = False
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor of a session's state. name: as in the bundle's manifest, such as `hidden`.

    dtype: such as `float32`. shape: without the batch axis. data: row-major, little-endian; with NumPy,
    `np.frombuffer(data, dtype).reshape(shape)`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Emitted:
    """The tokens that a transducer's session has emitted so far. tokens: the last ones, oldest first, as many as the
    model keeps. count: how many it has emitted in total."""

    tokens: tuple[Token, ...]
    count: int
