"""The flags of `python -m export transducer`. Why annotations are not postponed: see `foreign.flags`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import Argument, Option

from export.foreign.arguments import AXES, BATCH_AXES, STATES
from export.foreign.flags import BundleFlags

TRANSDUCER_EPILOG = """For example: python -m export transducer encoder.onnx predictor.onnx joiner.onnx --vocabulary
tokens.txt --name recogniser --to my_repository"""


@dataclass(kw_only=True)
class TransducerFlags(BundleFlags):
    """A transducer in two or three ONNX files.

    An encoder of frames with its states, a prediction network over tokens, and a joiner; or the last two in one file.
    Frames go in, and tokens come out. States are found as by `python -m export onnx`.
    """

    encoder: Path = Argument(..., metavar="ENCODER", help="The .onnx file that reads frames.")
    predictor: Path = Argument(..., metavar="PREDICTOR", help="The .onnx file that reads tokens.")
    joiner: Path | None = Argument(
        None, metavar="JOINER", help="The .onnx file that returns logits, if PREDICTOR does not."
    )
    vocabulary: Path | None = Option(None, metavar="FILE", help="The tokens, with the blank, one a line.")
    blank: int = Option(0, metavar="ID", help="The token that ends a frame.")
    start_token: int | None = Option(
        None, metavar="ID", show_default="the blank", help="The first token that the prediction network reads."
    )
    max_symbols: int = Option(10, min=1, metavar="N", help="The most tokens of an encoded frame.")
    blank_penalty: float = Option(0.0, metavar="X", help="Subtracted from the blank's logit.")
    history: int = Option(256, min=1, metavar="N", help="How many of the last tokens a session keeps.")
    state: list[str] = STATES
    force_state: bool = Option(False, "--force-state", help="Accept pairs of --state that the graph contradicts.")
    axis: list[Any] = AXES
    batch_axis: list[Any] = BATCH_AXES
    encoder_output: str | None = Option(
        None, metavar="NAME", help="The output of the encoder that is no state, if there are several."
    )
    predictor_output: str | None = Option(
        None, metavar="NAME", help="The output of the predictor that is no state, if there are several."
    )
    encoded: str | None = Option(None, metavar="NAME", help="The joiner's input that is the encoded frame.")
    predicted: str | None = Option(None, metavar="NAME", help="The joiner's input that is the prediction.")
