"""The flags of `python -m export transducer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.foreign.forms import count, pairs, place, size

TRANSDUCER_HELP = """A transducer in ONNX files: an encoder of frames with its states, a prediction network over tokens,
and a joiner; or the last two in one file. Frames go in, and tokens come out. States are found as by `python -m export
onnx`."""
TRANSDUCER_EPILOG = """For example: python -m export transducer encoder.onnx predictor.onnx joiner.onnx --vocabulary
tokens.txt --name recogniser --to my_repository"""


def add_transducer_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to `parser`."""
    parser.add_argument("encoder", type=Path, metavar="ENCODER", help="the .onnx file that reads frames")
    parser.add_argument("predictor", type=Path, metavar="PREDICTOR", help="the .onnx file that reads tokens")
    parser.add_argument(
        "joiner",
        type=Path,
        nargs="?",
        metavar="JOINER",
        help="the .onnx file that gives logits (default: PREDICTOR does)",
    )
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="the tokens, the blank too, one a line")
    parser.add_argument("--blank", type=int, default=0, metavar="ID", help="the token that ends a frame (default: 0)")
    parser.add_argument(
        "--start-token", type=int, metavar="ID", help="what the prediction network reads first (default: the blank)"
    )
    parser.add_argument(
        "--max-symbols", type=count, default=10, metavar="N", help="tokens of an encoded frame at most (default: 10)"
    )
    parser.add_argument(
        "--blank-penalty", type=float, default=0.0, metavar="X", help="taken off the blank's logit (default: 0)"
    )
    parser.add_argument(
        "--history",
        type=count,
        default=256,
        metavar="N",
        help="how many of the last tokens a session keeps (default: 256)",
    )
    parser.add_argument(
        "--state", type=pairs, action="append", default=[], metavar="IN=OUT", help="a state's input and its output"
    )
    parser.add_argument("--force-state", action="store_true", help="take pairs of --state that the graph contradicts")
    parser.add_argument(
        "--axis", type=size, action="append", default=[], metavar="AXIS=SIZE", help="the length of an axis without one"
    )
    parser.add_argument(
        "--batch-axis",
        type=place,
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="which axis of a tensor counts rows, from 0",
    )
    for part in ("encoder", "predictor"):
        parser.add_argument(
            f"--{part}-output", metavar="NAME", help=f"what of the {part} is no state, when there are more"
        )
    parser.add_argument("--encoded", metavar="NAME", help="the joiner's input that is the encoded frame")
    parser.add_argument("--predicted", metavar="NAME", help="the joiner's input that is the prediction")
