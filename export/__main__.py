"""python -m export: a checkpoint to a verified bundle."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from export.errors import ExportError
from service.repository.manifest import FILE_NAME, Manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 1 when nothing was written."""
    parsed = _parser().parse_args(arguments)
    from export.g2p import export_g2p  # noqa: PLC0415  # torch takes seconds to import; --help need not wait

    print(f"exporting {parsed.checkpoint} and proving the graphs ...", flush=True)
    try:
        folder = export_g2p(parsed.checkpoint, to=parsed.to, version=parsed.version, replace=parsed.replace)
    except (ExportError, ValidationError, OSError) as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return 1
    _report(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description="Exports a checkpoint to a verified bundle.")
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    g2p = recipes.add_parser("g2p", help="English spelling to phonemes: the bundle g2p-en")
    g2p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a best.safetensors of models.recipes.g2p")
    g2p.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the model repository")
    g2p.add_argument("--version", type=_version, default=1, help="the bundle's version (default: 1)")
    g2p.add_argument("--replace", action="store_true", help="take the place of the version that is there")
    return parser


def _version(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {2**31 - 1}")
    return int(text)


def _report(folder: Path) -> None:
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    print(f"wrote {folder}")
    for file in sorted(folder.iterdir()):
        print(f"  {file.name:<20}{file.stat().st_size:>12,} bytes")
    parity = manifest.parity
    print(f"parity with PyTorch on {parity.num_rows} rows, largest absolute error (at most {parity.tolerance:g}):")
    for name, error in parity.max_abs_error.items():
        print(f"  {name:<20}{error:>12.1e}")
    print("a row's bits do not depend on batch, order, chunks, padding or neighbours: held")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a terminated export cleans up after itself
    sys.exit(main())
