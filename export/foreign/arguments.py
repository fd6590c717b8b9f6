"""The flags of `python -m export onnx`. Why annotations are not postponed: see `flags`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import Argument, Option

from export.foreign.flags import BundleFlags, Tokenizer
from export.foreign.forms import maybe_numbers, numbers, pair, pairs, place, size

ONNX_EPILOG = """For example: python -m export onnx vad.onnx --name vad --to my_repository --state state=stateN
--constant sr=16000 --axis samples=512; python -m export onnx decoder.onnx --encoder encoder.onnx --name translator
--to my_repository --source-vocabulary en.txt --vocabulary de.txt --bos 1 --eos 2 --source-eos 2"""

STATES: Any = Option([], parser=pairs, metavar="IN=OUT", help="A state's input and its output.")
AXES: Any = Option([], parser=size, metavar="AXIS=SIZE", help="The length of an axis without one.")
BATCH_AXES: Any = Option(
    [], parser=place, metavar="NAME=PLACE", help="Which axis of a tensor is the batch axis, from 0."
)


@dataclass(kw_only=True)
class OnnxFlags(BundleFlags):
    """An ONNX file that somebody else exported.

    Its graph takes one step and returns the state after it. States are found in the graph; names such as h0 and hn
    break ties. What cannot be found, flags must give.
    """

    file: Path = Argument(..., metavar="FILE", help="The .onnx file.")
    state: list[str] = STATES
    force_state: bool = Option(
        False,
        "--force-state",
        help="Accept pairs of --state, and states that are not kept, that the graph contradicts.",
    )
    expose_state: bool = Option(
        False,
        "--expose-state",
        help="Make the states of LSTM, GRU and RNN nodes inputs and outputs, if the file has none.",
    )
    constant: list[Any] = Option(
        [],
        parser=numbers,
        metavar="NAME=VALUE[,VALUE...]",
        help="An input that is the same in every step, such as a sampling rate.",
    )
    input: list[str] = Option(
        [],
        metavar="NAME",
        help="An input that a step reads, if there are several, or if it has integers that are no tokens.",
    )
    output: list[str] = Option([], metavar="NAME", help="An output of a step, if there are several.")
    window: list[Any] = Option(
        [],
        parser=size,
        metavar="NAME=LENGTH",
        help="How many elements at the beginning of an input repeat the last ones of the steps before.",
    )
    start: str | None = Option(None, metavar="NAME", help="The input that is true at a session's first step.")
    end: str | None = Option(None, metavar="NAME", help="The input that is true at a session's last step.")
    session_constant: list[Any] = Option(
        [],
        parser=maybe_numbers,
        metavar="NAME[=VALUE[,VALUE...]]",
        help="An input that each session gets when it is opened. Repeated: the allowed values, the default first.",
    )
    session_id: str | None = Option(None, metavar="NAME", help="The input that identifies the session, a number.")
    initial: list[Any] = Option(
        [],
        parser=pair,
        metavar="STATE=FILE.npy|VALUE[,VALUE...]|OUT",
        help="A state's first value, if it is not zero; with --encoder also the name of one of its outputs.",
    )
    axis: list[Any] = AXES
    batch_axis: list[Any] = BATCH_AXES
    encoder: Path | None = Option(
        None, metavar="FILE", help="The .onnx file of the encoder, if the first file is a decoder of one step."
    )
    context: list[Any] = Option(
        [],
        parser=pair,
        metavar="IN=OUT",
        help="An input of the decoder and the encoder's output that it reads in every step.",
    )
    mask: list[str] = Option(
        [],
        metavar="NAME[=MEANING]",
        help="The mask over the source: real (1 at its tokens), padding (1 behind them) or additive.",
    )
    lengths: list[str] = Option([], metavar="NAME", help="The input with the length of each source.")
    source_vocabulary: Path | None = Option(None, metavar="FILE", help="The source's tokens, one a line.")
    source_tokenizer: Tokenizer = Option("whitespace", help="How a source's text becomes tokens.")
    source_bos: int | None = Option(None, metavar="ID", help="The token that the server puts before a source.")
    source_eos: int | None = Option(None, metavar="ID", help="The token that the server puts after a source.")
    max_source_length: int = Option(256, min=1, max=65536, metavar="N", help="The longest source.")
    vocabulary: Path | None = Option(None, metavar="FILE", help="The tokens that it reads, one a line.")
    labels: Path | None = Option(None, metavar="FILE", help="The labels of its logits, one a line.")
    tokenizer: Tokenizer = Option("whitespace", help="How text becomes tokens.")
    bos: int | None = Option(None, metavar="ID", help="The start token.")
    eos: int | None = Option(None, metavar="ID", help="The end token.")
    feeds_back: bool = Option(
        False, "--feeds-back", help="Its values are the next step's input, so that it can generate."
    )
