"""python -m export: a checkpoint to a verified bundle."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from export.errors import ExportError, refused_fields
from export.foreign.arguments import ONNX_EPILOG, ONNX_HELP, add_onnx_arguments
from export.foreign.flags import add_common_flags, add_place, common_options
from export.foreign.forms import count, model_name
from export.interruption import Interrupted, interruptible
from export.transducers.arguments import TRANSDUCER_EPILOG, TRANSDUCER_HELP, add_transducer_arguments
from models.missing import told_missing
from service.repository.manifest import FILE_NAME, Manifest, Parity

INT8 = "int8"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 when nothing was written, or a shell's for the signal that
    has interrupted it. To be called by the main thread."""
    parsed = _parser().parse_args(arguments)
    try:
        with interruptible():
            folder = _EXPORTS[parsed.recipe](parsed)
    except Interrupted as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return error.exit_code
    except (ExportError, ValidationError, OSError) as error:
        said = refused_fields(error) if isinstance(error, ValidationError) else error
        print(f"nothing was written: {said}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        missing = told_missing(error, "train" if parsed.recipe in _SHIPPED else None)
        if missing is None:
            raise
        print(f"nothing was written: {missing}", file=sys.stderr)
        return 1
    _report(folder)
    return 0


def _export_random_lm(parsed: argparse.Namespace) -> Path:
    from export.random_lm import export_random_lm  # noqa: PLC0415  # torch takes seconds to import; --help need not wait

    print(f"exporting {parsed.name} and proving its graph ...", flush=True)
    return export_random_lm(
        name=parsed.name,
        hidden_size=parsed.hidden,
        num_layers=parsed.layers,
        vocabulary_size=parsed.vocabulary,
        bos_id=parsed.bos,
        eos_id=parsed.eos,
        seed=parsed.seed,
        int8=INT8 in parsed.variants,
        to=parsed.to,
        replace=parsed.replace,
    )


def _export_shipped(parsed: argparse.Namespace) -> Path:
    """Writes the bundle of a recipe's checkpoint."""
    from export.bundle import MAX_BUNDLE_BYTES  # noqa: PLC0415  # likewise

    module, _ = _SHIPPED[parsed.recipe]
    shipped = importlib.import_module(module)
    print(f"exporting {parsed.checkpoint} and proving the graphs ...", flush=True)
    folder: Path = shipped.export_bundle(
        parsed.checkpoint,
        to=parsed.to,
        name=shipped.recipe.MODEL,
        description=shipped.DESCRIPTION,
        version=parsed.version,
        int8=INT8 in parsed.variants,
        max_bytes=parsed.max_bytes or MAX_BUNDLE_BYTES,
        replace=parsed.replace,
    )
    return folder


def _export_torch(parsed: argparse.Namespace) -> Path:
    from export.torch_model import load_factory, write_module  # noqa: PLC0415  # likewise

    model = load_factory(parsed.factory)
    print(f"exporting {parsed.factory} and proving the graphs ...", flush=True)
    notes: list[str] = []
    folder = write_module(
        model,
        notes=notes,
        **common_options(parsed, description=model.description, evaluation=model.evaluation),
    )
    for note in notes:
        print(f"note           {note}")
    return folder


def _export_onnx(parsed: argparse.Namespace) -> Path:
    from export.foreign import command  # noqa: PLC0415  # likewise

    return command.run(parsed)


def _export_transducer(parsed: argparse.Namespace) -> Path:
    from export.transducers import command  # noqa: PLC0415  # likewise

    return command.run(parsed)


_SHIPPED = {
    "g2p": ("export.shipped.g2p", "English spelling to phonemes: the bundle g2p-en"),
    "translate": ("export.shipped.translate", "English to German, as programs speak: the bundle translate-en-de"),
    "pychar": ("export.shipped.pychar", "Python source, character by character: the bundle pychar-en"),
    "stress": ("export.shipped.stress", "phonemes of running speech to stress: the bundle stress-en"),
    "co2": ("export.shipped.co2", "atmospheric carbon dioxide, months ahead: the bundle co2-forecast"),
    "morse": ("export.shipped.morse", "Morse code by ear, a transducer: the bundle morse"),
}
"""The recipes of the models that come with the project: which module exports each, and its help."""
_EXPORTS: dict[str, Callable[[argparse.Namespace], Path]] = {
    **dict.fromkeys(_SHIPPED, _export_shipped),
    "torch": _export_torch,
    "onnx": _export_onnx,
    "transducer": _export_transducer,
    "random-lm": _export_random_lm,
}
_WITH_VARIANTS = ("g2p", "translate")


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line each, and not all flags first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"nothing was written: {message}. {self.prog} --help names all flags\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m export", description="Exports a checkpoint to a verified bundle.")
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    for name, (module, about) in _SHIPPED.items():
        recipe = recipes.add_parser(name, help=about)
        made_by = module.replace("export.shipped", "models.recipes")
        recipe.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=f"a best.safetensors of {made_by}")
        add_place(recipe)
        recipe.add_argument(
            "--max-bytes", type=count, metavar="N", help="the most the bundle may weigh (default: 16000000)"
        )
        recipe.set_defaults(variants=[])
        if name in _WITH_VARIANTS:
            _add_variants(recipe)
    torch_model = recipes.add_parser(
        "torch",
        help="a module of your own",
        description="A module of your own. What it must do, and how to say so: `python -m pydoc export.torch_model`.",
    )
    torch_model.add_argument(
        "factory", metavar="MODULE:FACTORY", help="a function without arguments that returns a TorchModel"
    )
    add_common_flags(torch_model)
    onnx_file = recipes.add_parser(
        "onnx", help="an ONNX file that somebody else exported", description=ONNX_HELP, epilog=ONNX_EPILOG
    )
    add_onnx_arguments(onnx_file)
    add_common_flags(onnx_file)
    transducer = recipes.add_parser(
        "transducer",
        help="a transducer in ONNX files: encoder, prediction network, joiner",
        description=TRANSDUCER_HELP,
        epilog=TRANSDUCER_EPILOG,
    )
    add_transducer_arguments(transducer)
    add_common_flags(transducer)
    random_lm = recipes.add_parser("random-lm", help="a language model of random weights, to measure with")
    random_lm.add_argument("--name", type=model_name, required=True, help="the model's name")
    random_lm.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the model repository")
    random_lm.add_argument("--hidden", type=int, default=128, help="units of each layer (default: 128)")
    random_lm.add_argument("--layers", type=int, default=1, help="layers (default: 1)")
    random_lm.add_argument("--vocabulary", type=int, default=64, help="tokens (default: 64)")
    random_lm.add_argument("--bos", type=int, metavar="ID", help="the start token (default: none)")
    random_lm.add_argument("--eos", type=int, metavar="ID", help="the end token (default: none)")
    random_lm.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    _add_variants(random_lm)
    random_lm.add_argument("--replace", action="store_true", help="take the place of the version that is there")
    return parser


def _add_variants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variants", nargs="*", choices=[INT8], default=[], help="other arithmetic to write too")


def _report(folder: Path) -> None:
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    print(f"wrote {folder}")
    for file in sorted(folder.iterdir()):
        print(f"  {file.name:<20}{file.stat().st_size:>12,} bytes")
    _report_parity(f"parity with {manifest.parity.reference}", manifest.parity)
    for name, variant in manifest.variants.items():
        _report_parity(f"parity of {name} with the above", variant.parity)
    print("a row's bits do not depend on batch, order, chunks, padding or neighbours: held")


def _report_parity(title: str, parity: Parity) -> None:
    print(f"{title} on {parity.num_rows} rows, largest absolute error (at most {parity.tolerance:g}):")
    for name, error in parity.max_abs_error.items():
        print(f"  {name:<20}{error:>12.1e}")


if __name__ == "__main__":
    sys.exit(main())
