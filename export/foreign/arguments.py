"""The flags of `python -m export onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.foreign.forms import length, maybe_numbers, numbers, pair, pairs, place, size

ONNX_HELP = """An ONNX file that somebody else exported: a graph that takes one step and gives the state after it.
States are found in the graph, and names such as h0 and hn break ties; what cannot be found is told."""
ONNX_EPILOG = """For example: python -m export onnx vad.onnx --name vad --to my_repository --state state=stateN
--constant sr=16000 --axis samples=512; python -m export onnx decoder.onnx --encoder encoder.onnx --name translator
--to my_repository --source-vocabulary en.txt --vocabulary de.txt --bos 1 --eos 2 --source-eos 2"""


def add_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to `parser`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the .onnx file")
    parser.add_argument(
        "--state", type=pairs, action="append", default=[], metavar="IN=OUT", help="a state's input and its output"
    )
    parser.add_argument(
        "--force-state", action="store_true", help="take pairs of --state, and lost states, that the graph contradicts"
    )
    parser.add_argument(
        "--expose-state",
        action="store_true",
        help="make the states of LSTM, GRU and RNN nodes inputs and outputs, where the file has none",
    )
    parser.add_argument(
        "--constant",
        type=numbers,
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="an input that is the same in every step, such as a sampling rate",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME",
        help="an input that a step reads, when there are more, or when it is of whole numbers that are no tokens",
    )
    parser.add_argument(
        "--output", action="append", default=[], metavar="NAME", help="an output that a step gives, when there are more"
    )
    parser.add_argument(
        "--window",
        type=size,
        action="append",
        default=[],
        metavar="NAME=LENGTH",
        help="how many elements of an input come again from the steps before, ahead of those that are new",
    )
    parser.add_argument("--start", metavar="NAME", help="the input that is true at a session's first step")
    parser.add_argument("--end", metavar="NAME", help="the input that is true at a session's last step")
    parser.add_argument(
        "--session-constant",
        type=maybe_numbers,
        action="append",
        default=[],
        metavar="NAME[=VALUE[,VALUE...]]",
        help="an input that each session is given when it is opened; repeated: values to try, the default first",
    )
    parser.add_argument("--session-id", metavar="NAME", help="the input that is a number of the session's own")
    parser.add_argument(
        "--initial",
        type=pair,
        action="append",
        default=[],
        metavar="STATE=FILE.npy|VALUE[,VALUE...]|OUT",
        help="a state's first value, where that is not zeros; with --encoder also an output of that",
    )
    parser.add_argument(
        "--axis",
        type=size,
        action="append",
        default=[],
        metavar="AXIS=SIZE",
        help="the length of an axis without one",
    )
    parser.add_argument(
        "--batch-axis",
        type=place,
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="which axis of a tensor counts rows, from 0",
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="FILE",
        help="the .onnx file of the encoder, where FILE is a decoder of one step",
    )
    parser.add_argument(
        "--context",
        type=pair,
        action="append",
        default=[],
        metavar="IN=OUT",
        help="an input of the decoder and the encoder's output that it reads in every step",
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="NAME[=MEANING]",
        help="the input that is a mask over the source: real (1 at its tokens), padding (1 behind them) or additive",
    )
    parser.add_argument(
        "--lengths", action="append", default=[], metavar="NAME", help="the input that is how long each source is"
    )
    parser.add_argument("--source-vocabulary", type=Path, metavar="FILE", help="the source's tokens, one a line")
    parser.add_argument(
        "--source-tokenizer",
        choices=["characters", "whitespace"],
        default="whitespace",
        help="how a source's text becomes tokens",
    )
    parser.add_argument("--source-bos", type=int, metavar="ID", help="the token that the server puts before a source")
    parser.add_argument("--source-eos", type=int, metavar="ID", help="the token that the server puts after a source")
    parser.add_argument(
        "--max-source-length", type=length, default=256, metavar="N", help="the longest source (default: 256)"
    )
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="the tokens that it reads, one a line")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="what it gives logits over, one a line")
    parser.add_argument(
        "--tokenizer", choices=["characters", "whitespace"], default="whitespace", help="how text becomes tokens"
    )
    parser.add_argument("--bos", type=int, metavar="ID", help="the start token (default: none)")
    parser.add_argument("--eos", type=int, metavar="ID", help="the end token (default: none)")
    parser.add_argument(
        "--feeds-back", action="store_true", help="its values are what the next step reads: it can go on by itself"
    )
