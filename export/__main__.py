"""python -m export: a checkpoint to a verified bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from export.card import invariance
from export.errors import ExportError, refused_fields
from export.interruption import Interrupted, interruptible
from models.missing import missing_message
from service.repository.manifest import FILE_NAME, Manifest, Parity


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 when nothing was written, 2 for a wrong command line, or a
    shell's for the signal that has interrupted it. To be called by the main thread."""
    extra = None
    try:
        from export import commands  # noqa: PLC0415  # typer may not be installed

        flags = commands.parse(arguments)
        if isinstance(flags, int):
            return flags
        extra = "train" if isinstance(flags, commands.ShippedFlags) else None
        with interruptible():
            folder = commands.export(flags)
    except Interrupted as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return error.exit_code
    except (ExportError, ValidationError, OSError) as error:
        said = refused_fields(error) if isinstance(error, ValidationError) else error
        print(f"nothing was written: {said}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        missing = missing_message(error, extra)
        if missing is None:
            raise
        print(f"nothing was written: {missing}", file=sys.stderr)
        return 1
    _report(folder)
    return 0


def _report(folder: Path) -> None:
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    print(f"wrote {folder}")
    for file in sorted(folder.iterdir()):
        print(f"  {file.name:<20}{file.stat().st_size:>12,} bytes")
    _report_parity(f"parity with {manifest.parity.reference}", manifest.parity)
    for name, variant in manifest.variants.items():
        _report_parity(f"parity of {name} with the above", variant.parity)
    for line in invariance(manifest.step):
        print(f"checked: {line}")


def _report_parity(title: str, parity: Parity) -> None:
    print(f"{title} on {parity.num_rows} rows, largest absolute error (at most {parity.tolerance:g}):")
    for name, error in parity.max_abs_error.items():
        print(f"  {name:<20}{error:>12.1e}")


if __name__ == "__main__":
    sys.exit(main())
