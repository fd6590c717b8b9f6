"""The values that calls return. They are frozen, and independent of the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypedDict, overload

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
        """Empty. Of a `ValueToken`, which a generation yields of a model that gives values, the step's values."""
        return ()


class ValueToken(Token):
    """What a generation yields of a model that gives values: one step's values, with the face of a token.

    It equals, and can be unpacked and indexed like, the tuple of its values. id is 0 and text is the values in words,
    because such a model has no vocabulary. `Generation.vectors` returns plain tuples.
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
    """What the model says comes next.

    position: how many tokens were consumed before. tokens: the most likely next ones, most likely first; empty when
    logits were requested. logits: [V] by token id, empty unless requested. values: of a model that gives values. trace:
    gates and states inside the step, by name, such as `layer0.forget_gate`; empty unless requested. outputs: the named
    parts of `values`, row-major, of a model that has those.

    Of a transducer, `tokens` are those that the step to `position` has emitted, in order. num_limited: at how many of
    its encoded frames there were as many as may be, so that more might have come.
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

    position: the session's position after it. outputs: one, or with `every_position` one for each token fed, or none
    with `outputs=False`; of a transducer one for each vector with which it emitted tokens. replayed: the
    feed had been applied before, and this repeats its answer.
    """

    position: int
    outputs: tuple[StepOutput, ...] = ()
    replayed: bool = False

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The candidates for the next token after the last one fed, most likely first; empty if none were requested."""
        return self.outputs[-1].tokens if self.outputs else ()

    @property
    def emitted(self) -> tuple[Token, ...]:
        """The tokens of all outputs: what a transducer has emitted with all that was fed."""
        return tuple(token for output in self.outputs for token in output.tokens)

    @property
    def token(self) -> Token:
        """The most likely next token. Raises LookupError when the feed requested logits, or nothing."""
        if not self.tokens:
            raise LookupError(
                "the answer has no tokens, because the feed had logits=True or outputs=False: read `logits`"
            )
        return self.tokens[0]

    @property
    def logits(self) -> tuple[float, ...]:
        """The logits after the last token fed, [V] by token id; empty unless requested."""
        return self.outputs[-1].logits if self.outputs else ()

    @property
    def values(self) -> tuple[float, ...]:
        """The values after the last step fed, of a model that gives values; empty for other models."""
        return self.outputs[-1].values if self.outputs else ()

    @property
    def trace(self) -> Mapping[str, tuple[float, ...]]:
        """Gates and states inside the last step, by name; empty unless requested."""
        return self.outputs[-1].trace if self.outputs else {}


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence that a beam search found.

    tokens: each with its log-probability, without the one that ended it. score: what it is ranked by, log_probability
    over its length to the power of the length penalty. log_probability: the sum of its tokens', the one that ended it
    with them. finish_reason: why it ended. text: of models of subwords.
    """

    tokens: tuple[Token, ...]
    score: float
    log_probability: float
    finish_reason: FinishReason
    text: str = ""


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """What `generate_many` gives for a source, which is as it was given.

    tokens, text, finish_reason, hypotheses: as a generation has them; values: [steps] vectors, of a model that gives
    values. error: why there is nothing of that, None when there is.
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
    """How likely a target is. log_probability: natural logarithm, the sum of log_probabilities: of each of its tokens
    given those before it, and with `with_end` of the end token after them."""

    log_probability: float
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A live session as its server sees it. Times are in UTC.

    durability: what of it is stored. checkpoint_position: how far, None: it is not. attached: whether a stream has it.
    spilled: whether its state is in the store alone, to make room. marks: where it can be set back to, oldest first.
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
    """A tensor of a session's state: one of the names in the bundle's manifest, such as `hidden`.

    dtype: such as `float32`. shape: without the axis of the batch. data: row-major, little-endian: with NumPy,
    `np.frombuffer(data, dtype).reshape(shape)`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a session of a transducer has emitted so far. tokens: the last ones, the newest last, as many as the model
    keeps. count: how many in all."""

    tokens: tuple[Token, ...]
    count: int


class DecodingOptions(TypedDict, total=False):
    """How a generation chooses tokens. Without any sampling option the most likely one is taken each time.

    max_tokens: at most so many, 1 or more (default: the model's limit). log_probabilities: give each token its own.
    repetition_penalty: makes tokens already given less likely, above 0 and at most 100 (default 1: none). min_tokens:
    at least so many before the generation may end (default 0). stop: tokens, by name or by id, that end it as the end
    token does.

    Any of temperature, top_k, top_p and seed selects sampling. temperature: divides the logits, above 0 and at most 100
    (default 1). top_k: draw from the k most likely, 1 or more (default: all). top_p: draw from the most likely that
    together have this probability, above 0 and at most 1 (default 1). seed: the same seed at the same position over the
    same logits draws the same token, 0 to 2**64 - 1 (default: the client draws one; `Generation.seed` has it).

    beam_size: search for the likeliest sequences instead, following so many at once, 1 or more; goes with no sampling
    option and no repetition_penalty. The tokens then come together, at the end. length_penalty: a sequence's score is
    the sum of its log-probabilities over its length to this power, -10 to 10 (default 1). num_best: how many sequences
    to return as `hypotheses`, 1 to beam_size (default 1).
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    log_probabilities: bool
    repetition_penalty: float | None
    min_tokens: int | None
    stop: Sequence[str] | Sequence[int]
    beam_size: int | None
    length_penalty: float | None
    num_best: int | None
