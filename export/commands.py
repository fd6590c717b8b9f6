"""The command line of `python -m export`: the flags of each command, and the function that each one calls.

Modules that need torch are imported when a bundle is written: torch takes seconds to import, and `--help` does not need
it. Why annotations are not postponed: see `foreign.flags`.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from typer import Argument, Option
from typer.exceptions import TyperException

from export.foreign.arguments import ONNX_EPILOG, OnnxFlags
from export.foreign.flags import NAME, REPLACE, TO, BundleFlags, PlaceFlags
from export.transducers.arguments import TRANSDUCER_EPILOG, TransducerFlags

_SHIPPED = {
    "g2p": ("export.shipped.g2p", "g2p-en: English spelling to phonemes."),
    "translate": ("export.shipped.translate", "translate-en-de: English to German, as programs speak."),
    "pychar": ("export.shipped.pychar", "pychar-en: Python source, character by character."),
    "stress": ("export.shipped.stress", "stress-en: phonemes of running speech to stress."),
    "co2": ("export.shipped.co2", "co2-forecast: atmospheric carbon dioxide, months ahead."),
    "morse": ("export.shipped.morse", "morse: Morse code by ear, a transducer."),
}
"""The recipes of the models that come with the project: which module exports each, and its help."""
_WITH_VARIANTS = ("g2p", "translate")


class VariantFlag(StrEnum):
    """Other arithmetic."""

    INT8 = "int8"


_VARIANTS: Any = Option([], metavar="int8", help="Also write this variant.")


@dataclass(kw_only=True)
class ShippedFlags(PlaceFlags):
    """The flags of a shipped model."""

    context: typer.Context
    checkpoint: Path = Argument(..., metavar="CHECKPOINT", help="The recipe's best.safetensors.")
    max_bytes: int | None = Option(
        None, min=1, metavar="N", show_default="16000000", help="The bundle's largest size in bytes."
    )


@dataclass(kw_only=True)
class ShippedFlagsWithVariants(ShippedFlags):
    """The flags of a shipped model that has variants."""

    variants: list[VariantFlag] = _VARIANTS


@dataclass(kw_only=True)
class TorchFlags(BundleFlags):
    """A module of your own.

    What it must do, and how to describe it: `python -m pydoc export.torch_model`.
    """

    factory: str = Argument(
        ..., metavar="MODULE:FACTORY", help="A function without arguments that returns a TorchModel."
    )


@dataclass(kw_only=True)
class RandomFlags:
    """A language model of random weights, for measurements."""

    name: str = NAME
    to: Path = TO
    hidden: int = Option(128, min=1, metavar="N", help="Units of each layer.")
    layers: int = Option(1, min=1, metavar="N", help="Layers.")
    vocabulary: int = Option(64, min=2, metavar="N", help="Tokens.")
    bos: int | None = Option(None, metavar="ID", help="The start token.")
    eos: int | None = Option(None, metavar="ID", help="The end token.")
    seed: int = Option(0, metavar="N", help="The seed of the weights.")
    variants: list[VariantFlag] = _VARIANTS
    replace: bool = REPLACE


Flags = ShippedFlags | TorchFlags | OnnxFlags | TransducerFlags | RandomFlags
_app = typer.Typer(
    help="Exports a checkpoint to a verified bundle.",
    add_completion=False,
    rich_markup_mode=None,
    subcommand_metavar="RECIPE ...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, (_module, _about) in _SHIPPED.items():
    _made_by = _module.replace("export.shipped", "models.recipes")
    _app.command(_name, help=f"{_about}\n\nThe checkpoint is from a run of {_made_by}.")(
        ShippedFlagsWithVariants if _name in _WITH_VARIANTS else ShippedFlags
    )
_app.command("torch")(TorchFlags)
_app.command("onnx", epilog=ONNX_EPILOG)(OnnxFlags)
_app.command("transducer", epilog=TRANSDUCER_EPILOG)(TransducerFlags)
_app.command("random-lm")(RandomFlags)


def parse(arguments: Sequence[str] | None = None) -> Flags | int:
    """Returns the flags of the command that `arguments`, or the process's own, name.

    Returns the exit code if there is nothing to do: 0 after `--help`, and 2 for a wrong command line, whose error it
    prints.
    """
    try:
        parsed: Flags | int = typer.main.get_command(_app)(
            arguments, standalone_mode=False, prog_name="python -m export"
        )
    except TyperException as error:
        context: Any = getattr(error, "ctx", None)
        command = context.command_path if context else "python -m export"
        message = error.format_message().rstrip(".")
        if "Value error, " in message:
            message = message.replace("Value error, ", "")
        elif isinstance(error.__cause__, ValidationError):
            message += f", not {error.__cause__.errors()[0]['input']!r}"
        print(f"nothing was written: {message}. {command} --help lists all flags", file=sys.stderr)
        return 2
    return parsed


def export(flags: Flags) -> Path:
    """Writes the bundle and returns its folder. Raises ExportError, OSError, pydantic.ValidationError, and
    ModuleNotFoundError when the packages of an extra are missing."""
    match flags:
        case ShippedFlags():
            return _export_shipped(flags)
        case TorchFlags():
            return _export_torch(flags)
        case RandomFlags():
            return _export_random_lm(flags)
        case OnnxFlags():
            from export.foreign import command  # noqa: PLC0415  # torch takes seconds to import

            return command.run(flags)
        case TransducerFlags():
            from export.transducers import command as transducers  # noqa: PLC0415  # likewise

            return transducers.run(flags)


def _export_shipped(flags: ShippedFlags) -> Path:
    from export.bundle import MAX_BUNDLE_BYTES  # noqa: PLC0415  # likewise

    module, _ = _SHIPPED[flags.context.info_name or ""]
    shipped = importlib.import_module(module)
    print(f"exporting {flags.checkpoint} and proving the graphs ...", flush=True)
    folder: Path = shipped.export_bundle(
        flags.checkpoint,
        to=flags.to,
        name=shipped.recipe.MODEL,
        description=shipped.DESCRIPTION,
        version=flags.version,
        int8=isinstance(flags, ShippedFlagsWithVariants) and bool(flags.variants),
        max_bytes=flags.max_bytes or MAX_BUNDLE_BYTES,
        replace=flags.replace,
    )
    return folder


def _export_torch(flags: TorchFlags) -> Path:
    from export.factory import load_factory  # noqa: PLC0415  # likewise
    from export.torch_model import write_module  # noqa: PLC0415  # likewise

    model = load_factory(flags.factory)
    print(f"exporting {flags.factory} and proving the graphs ...", flush=True)
    notes: list[str] = []
    folder = write_module(
        model,
        notes=notes,
        **flags.options(description=model.description, evaluation=model.evaluation),
    )
    for note in notes:
        print(f"note           {note}")
    return folder


def _export_random_lm(flags: RandomFlags) -> Path:
    from export.random_lm import export_random_lm  # noqa: PLC0415  # likewise

    print(f"exporting {flags.name} and proving its graph ...", flush=True)
    return export_random_lm(
        name=flags.name,
        hidden_size=flags.hidden,
        num_layers=flags.layers,
        vocabulary_size=flags.vocabulary,
        bos_id=flags.bos,
        eos_id=flags.eos,
        seed=flags.seed,
        int8=bool(flags.variants),
        to=flags.to,
        replace=flags.replace,
    )
