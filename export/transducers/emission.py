"""Writes the loop of a transducer's graph that emits tokens, for many rows at once.

In each turn, the joiner runs for the rows that have a frame left, and the prediction network for those of them that
emit a token. Inside the loop, each carried tensor is [B, size]. Shapes: `B` rows, `A` rows with a frame left, `F`
encoded frames of a step, `E` numbers of each, `C` most tokens of a step.

Each file's weights are in the graph that runs its nodes. ONNX Runtime prepares weights of an outer graph in another
way, which changes bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.surgery import Writer
from export.transducers.bare_loop import Rules, are_columns, encoded_size, num_frames
from export.transducers.crossing import entered, left, left_state, nodes_of
from export.transducers.decoders import Decoder, JoinedDecoder, ThreeFiles, context_of
from export.transducers.network import Network

OUTPUT, EMITTED, NUM_EMITTED = "carousel/emitted", "emitted", "num_emitted"
"""The names of a step's output, of the state with the last tokens, and of the state with the number of all tokens."""
_NAME = "transducer/"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the graph. others: the decoder's files, in the encoder's opset. capacity: most tokens of a step."""

    encoder: Network
    decoder: Decoder
    others: Sequence[Network]
    rules: Rules
    capacity: int

    @property
    def num_frames(self) -> int:
        """See `bare_loop`."""
        return num_frames(self.encoder, self.decoder)

    @property
    def encoded_size(self) -> int:
        """See `bare_loop`."""
        return encoded_size(self.encoder, self.decoder)

    @property
    def carried_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of carried tensors in a session, without the batch axis."""
        of_states = {kept.input.name: kept.input.row_shape for network in self.others for kept in network.states}
        return [of_states.get(one.name, one.initial.shape) for one in self.decoder.carried]


class Emission:
    """Adds the loop to the encoder's graph. Call `write` once."""

    def __init__(self, graph: onnx.GraphProto, parts: Parts) -> None:
        self._outer = Writer(graph, _NAME)
        self._parts = parts
        self._names = [one.name for one in parts.decoder.carried]

    def write(self) -> None:
        """Writes the loop, and the nodes before and after it."""
        outer, parts = self._outer, self._parts
        self._constants()
        self._encoded()
        outer.node("Shape", [f"{_NAME}frames"], f"{_NAME}frames_shape")
        outer.node("Gather", [f"{_NAME}frames_shape", self._zero], f"{_NAME}num_encoded", axis=0)
        outer.node("Div", [f"{_NAME}num_encoded", self._frames], f"{_NAME}num_rows")
        outer.node("Reshape", [f"{_NAME}num_rows", self._one_axis], f"{_NAME}rows")
        for name in ("at", "symbols", "count", "limited"):
            outer.node("ConstantOfShape", [f"{_NAME}rows"], f"{_NAME}{name}/0", value=_zeros(np.int64))
        size = outer.constant("capacity", np.array([parts.capacity], np.int64))
        outer.node("Concat", [f"{_NAME}rows", size], f"{_NAME}rows_and_capacity", axis=0)
        for name, kind in (("tokens", np.int64), ("scores", np.float32)):
            outer.node("ConstantOfShape", [f"{_NAME}rows_and_capacity"], f"{_NAME}{name}/0", value=_zeros(kind))
        for name in self._names:
            outer.node("Reshape", [name, self._flat], f"{name}/0")
        true = outer.constant("true", np.array(True))
        loop = [f"{_NAME}{name}" for name in _VARIABLES] + self._names
        before, after = [f"{name}/0" for name in loop], [f"{name}/last" for name in loop]
        outer.node("Loop", ["", true, *before], *after, body=self._body(loop))
        self._after()

    def _constants(self) -> None:
        constant, parts = self._outer.constant, self._parts
        self._zero = constant("zero", np.array(0, np.int64))
        self._one = constant("one", np.array(1, np.int64))
        self._one_axis = constant("one_axis", np.array([-1], np.int64))
        self._column = constant("column", np.array([-1, 1], np.int64))
        self._flat = constant("flat", np.array([0, -1], np.int64))
        self._frames = constant("frames_of_step", np.array(parts.num_frames, np.int64))
        self._most = constant("max_symbols", np.array(parts.rules.max_symbols, np.int64))
        self._blank = constant("blank", np.array(parts.rules.blank_id, np.int64))

    def _encoded(self) -> None:
        """Writes the encoded frames of all rows, [B * F, E]."""
        parts, outer = self._parts, self._outer
        last = left(self._outer, outer, parts.encoder.gives, parts.encoder.gives.name, "encoded", is_flat=False)
        if are_columns(parts.encoder, parts.encoded_size):
            shape = outer.constant("columns", np.array([0, parts.encoded_size, parts.num_frames], np.int64))
            outer.node("Reshape", [last, shape], f"{_NAME}columns_of_frames")
            outer.node("Transpose", [f"{_NAME}columns_of_frames"], f"{_NAME}rows_of_frames", perm=[0, 2, 1])
            last = f"{_NAME}rows_of_frames"
        shape = outer.constant("frame", np.array([-1, parts.encoded_size], np.int64))
        outer.node("Reshape", [last, shape], f"{_NAME}frames")

    def _body(self, loop: Sequence[str]) -> onnx.GraphProto:
        """Returns the body of one turn: it chooses a token or the blank for each row that has a frame left."""
        body = Writer(helper.make_graph([], "turn", [], []), _NAME)
        now = {name: f"{name}/now" for name in loop}
        at, symbols, limited = (now[f"{_NAME}{name}"] for name in ("at", "symbols", "limited"))
        node = body.node
        node("Less", [at, self._frames], "turn/is_active")
        node("NonZero", ["turn/is_active"], "turn/active_row")
        node("Reshape", ["turn/active_row", self._one_axis], "turn/active")
        node("Gather", [at, "turn/active"], "turn/at", axis=0)
        node("Mul", ["turn/active", self._frames], "turn/first")
        node("Add", ["turn/first", "turn/at"], "turn/frame")
        node("Gather", [f"{_NAME}frames", "turn/frame"], "turn/encoded", axis=0)
        for name in self._names:
            node("Gather", [now[name], "turn/active"], f"turn/{name}", axis=0)
        joined = self._joined(body)
        node("ArgMax", ["turn/logits"], "turn/token", axis=1, keepdims=0)
        node("Equal", ["turn/token", self._blank], "turn/is_blank")
        node("Not", ["turn/is_blank"], "turn/emits")
        node("Cast", ["turn/emits"], "turn/emits_one", to=TensorProto.INT64)
        node("Gather", [symbols, "turn/active"], "turn/symbols_before", axis=0)
        node("Add", ["turn/symbols_before", "turn/emits_one"], "turn/symbols")
        node("Equal", ["turn/symbols", self._most], "turn/is_limited")
        node("Or", ["turn/is_limited", "turn/is_blank"], "turn/is_done")
        node("And", ["turn/is_limited", "turn/emits"], "turn/hits_limit")
        node("Cast", ["turn/is_done"], "turn/done_one", to=TensorProto.INT64)
        node("Cast", ["turn/hits_limit"], "turn/limited_one", to=TensorProto.INT64)
        node("Add", ["turn/at", "turn/done_one"], "turn/at_after")
        node("Sub", [self._one, "turn/done_one"], "turn/going_on")
        node("Mul", ["turn/symbols", "turn/going_on"], "turn/symbols_after")
        node("Gather", [limited, "turn/active"], "turn/limited_before", axis=0)
        node("Add", ["turn/limited_before", "turn/limited_one"], "turn/limited_after")
        node("Reshape", ["turn/active", self._column], "turn/places")
        for name, given in (("at", at), ("symbols", symbols), ("limited", limited)):
            node("ScatterND", [given, "turn/places", f"turn/{name}_after"], f"{_NAME}{name}/next")
        node("NonZero", ["turn/emits"], "turn/emitting_row")
        node("Reshape", ["turn/emitting_row", self._one_axis], "turn/emitting")
        node("Size", ["turn/emitting"], "turn/num_emitting")
        node("Greater", ["turn/num_emitting", self._zero], "turn/any_emits")
        changed = [f"{_NAME}{name}" for name in ("count", "tokens", "scores")] + self._names
        emitted, unchanged = self._emitted(changed, now, joined), self._unchanged(changed, now)
        following = [f"{name}/next" for name in changed]
        node("If", ["turn/any_emits"], *following, else_branch=unchanged, then_branch=emitted)
        node("ReduceMin", [f"{_NAME}at/next"], "turn/least", keepdims=0)
        node("Less", ["turn/least", self._frames], "turn/goes_on")
        kinds = self._kinds()
        info = helper.make_tensor_value_info
        body.graph.input.extend(
            [info("turn/number", TensorProto.INT64, []), info("turn/condition", TensorProto.BOOL, [])]
        )
        body.graph.output.append(info("turn/goes_on", TensorProto.BOOL, []))
        for name in loop:
            kind, shape = kinds[name]
            body.graph.input.append(info(now[name], kind, shape))
            body.graph.output.append(info(f"{name}/next", kind, shape))
        return body.graph

    def _joined(self, body: Writer) -> list[str]:
        """Writes the joiner, whose output is `turn/logits`.

        Returns names of the tensors, with rows first, that `_advanced` needs besides the tokens.
        """
        parts, decoder = self._parts, self._parts.decoder
        network = parts.others[-1]
        joined: list[str] = []
        if isinstance(decoder, ThreeFiles):
            place = len(decoder.predictor.states)
            entered(self._outer, body, network.reads["predicted"], f"turn/{self._names[place]}")
        else:
            entered(self._outer, body, network.reads["tokens"], f"turn/{self._names[-1]}")
            for kept in network.states:
                entered(self._outer, body, kept.input, f"turn/{kept.input.name}")
        entered(self._outer, body, network.reads["encoded"], "turn/encoded")
        body.graph.node.extend(nodes_of(network))
        body.graph.initializer.extend(network.model.graph.initializer)
        if isinstance(decoder, JoinedDecoder):
            joined = [left_state(self._outer, body, kept.input, kept.output) for kept in network.states]
        logits = left(self._outer, body, network.gives, network.gives.name, "turn/all_logits")
        if network.gives.dtype != "float32":
            body.node("Cast", [logits], "turn/float_logits", to=TensorProto.FLOAT)
            logits = "turn/float_logits"
        if parts.rules.blank_penalty:
            penalty = np.zeros((1, decoder.vocabulary_size), np.float32)
            penalty[0, parts.rules.blank_id] = parts.rules.blank_penalty
            body.node("Sub", [logits, self._outer.constant("penalty", penalty)], "turn/logits")
        else:
            body.node("Identity", [logits], "turn/logits")
        return joined

    def _emitted(self, changed: Sequence[str], now: dict[str, str], joined: Sequence[str]) -> onnx.GraphProto:
        """Returns the branch for a turn in which at least one row emits a token."""
        branch = Writer(helper.make_graph([], "emitted", [], []), _NAME)
        node = branch.node
        node("Gather", ["turn/active", "turn/emitting"], "emit/rows", axis=0)
        node("Reshape", ["emit/rows", self._column], "emit/places")
        node("Gather", ["turn/token", "turn/emitting"], "emit/tokens", axis=0)
        node("Reshape", ["emit/tokens", self._column], "emit/token_column")
        node("Gather", ["turn/logits", "turn/emitting"], "emit/logits", axis=0)
        node("LogSoftmax", ["emit/logits"], "emit/log_softmax", axis=1)
        node("GatherElements", ["emit/log_softmax", "emit/token_column"], "emit/score_column", axis=1)
        node("Reshape", ["emit/score_column", self._one_axis], "emit/scores")
        count = now[f"{_NAME}count"]
        node("Gather", [count, "emit/rows"], "emit/count", axis=0)
        node("Reshape", ["emit/count", self._column], "emit/count_column")
        node("Concat", ["emit/places", "emit/count_column"], "emit/cells", axis=1)
        node("Add", ["emit/count", self._one], "emit/count_after")
        outputs = {f"{_NAME}count": "emit/after/count"}
        node("ScatterND", [count, "emit/places", "emit/count_after"], "emit/after/count")
        for name in ("tokens", "scores"):
            outputs[f"{_NAME}{name}"] = f"emit/after/{name}"
            node("ScatterND", [now[f"{_NAME}{name}"], "emit/cells", f"emit/{name}"], f"emit/after/{name}")
        for name, after in zip(self._names, self._advanced(branch, joined), strict=True):
            outputs[name] = f"emit/after/{name}"
            node("ScatterND", [now[name], "emit/places", after], f"emit/after/{name}")
        return self._branch(branch, changed, outputs)

    def _advanced(self, branch: Writer, joined: Sequence[str]) -> list[str]:
        """Writes the prediction network for the rows that emit. Returns names of the next carried tensors."""
        decoder, node = self._parts.decoder, branch.node
        size = context_of(self._parts.others[0])
        context = "emit/token_column"
        if size > 1 or isinstance(decoder, JoinedDecoder):
            node("Gather", [f"turn/{self._names[-1]}", "turn/emitting"], "emit/context_before", axis=0)
            both = "emit/context_and_token"
            node("Concat", ["emit/context_before", "emit/token_column"], both, axis=1)
            places = self._outer.constant("context_places", np.arange(1, size + 1, dtype=np.int64))
            node("Gather", [both, places], "emit/context", axis=1)
            context = "emit/context"
        if isinstance(decoder, JoinedDecoder):
            for place, name in enumerate(joined):
                node("Gather", [name, "turn/emitting"], f"emit/joined/{place}", axis=0)
            return [*(f"emit/joined/{place}" for place in range(len(joined))), context]
        network = self._parts.others[0]
        for kept in network.states:
            node("Gather", [f"turn/{kept.input.name}", "turn/emitting"], f"emit/{kept.input.name}", axis=0)
            entered(self._outer, branch, kept.input, f"emit/{kept.input.name}")
        entered(self._outer, branch, network.reads["tokens"], context)
        branch.graph.node.extend(nodes_of(network))
        branch.graph.initializer.extend(network.model.graph.initializer)
        states = [left_state(self._outer, branch, kept.input, kept.output) for kept in network.states]
        predicted = left(self._outer, branch, network.gives, network.gives.name, "emit/predicted")
        return [*states, predicted, *([context] if size > 1 else [])]

    def _unchanged(self, changed: Sequence[str], now: dict[str, str]) -> onnx.GraphProto:
        branch = Writer(helper.make_graph([], "unchanged", [], []), _NAME)
        for name in changed:
            branch.node("Identity", [now[name]], f"unchanged/{name}")
        return self._branch(branch, changed, {name: f"unchanged/{name}" for name in changed})

    def _branch(self, branch: Writer, changed: Sequence[str], outputs: dict[str, str]) -> onnx.GraphProto:
        kinds = self._kinds()
        branch.graph.output.extend(helper.make_tensor_value_info(outputs[name], *kinds[name]) for name in changed)
        return branch.graph

    def _kinds(self) -> dict[str, tuple[int, list[str | int]]]:
        """Returns the types and shapes of the loop's variables."""
        parts = self._parts
        found: dict[str, tuple[int, list[str | int]]] = {
            f"{_NAME}{name}": (TensorProto.INT64, ["batch"]) for name in ("at", "symbols", "count", "limited")
        }
        found[f"{_NAME}tokens"] = (TensorProto.INT64, ["batch", parts.capacity])
        found[f"{_NAME}scores"] = (TensorProto.FLOAT, ["batch", parts.capacity])
        for one in parts.decoder.carried:
            found[one.name] = (helper.np_dtype_to_tensor_dtype(one.initial.dtype), ["batch", one.initial.size])
        return found

    def _after(self) -> None:
        """Writes the step's output and next states: the last tokens, their number, and the carried tensors."""
        outer, parts = self._outer, self._parts
        for name, shape in zip(self._names, parts.carried_shapes, strict=True):
            form = outer.constant(f"{name}/shape", np.array([-1, *shape], np.int64))
            outer.node("Reshape", [f"{name}/last", form], f"{name}/next")
        count, tokens = f"{_NAME}count/last", f"{_NAME}tokens/last"
        outer.node("Reshape", [count, self._column], f"{_NAME}count_column")
        outer.node("Add", [NUM_EMITTED, f"{_NAME}count_column"], f"{NUM_EMITTED}/next")
        outer.node("Concat", [EMITTED, tokens], f"{_NAME}emitted_and_new", axis=1)
        places = outer.constant("history", np.arange(parts.rules.history, dtype=np.int64)[np.newaxis])
        outer.node("Add", [f"{_NAME}count_column", places], f"{_NAME}last_places")
        outer.node("GatherElements", [f"{_NAME}emitted_and_new", f"{_NAME}last_places"], f"{EMITTED}/next", axis=1)
        outer.node("Reshape", [f"{_NAME}limited/last", self._column], f"{_NAME}limited_column")
        for name in ("count_column", "limited_column", "tokens/last"):
            outer.node("Cast", [f"{_NAME}{name}"], f"{_NAME}{name}/float", to=TensorProto.FLOAT)
        columns = [f"{_NAME}{name}/float" for name in ("count_column", "limited_column", "tokens/last")]
        outer.node("Concat", [*columns, f"{_NAME}scores/last"], OUTPUT, axis=1)


_VARIABLES = ("at", "symbols", "count", "limited", "tokens", "scores")
"""The loop's variables for each row besides the decoder's: the current encoded frame, the number of tokens of that
frame and of the step, the number of frames that reached their limit, the tokens, and their log-probabilities."""


def _zeros(kind: type[np.generic]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.zeros(1, kind))
