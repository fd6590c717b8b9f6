"""`--constant`: values from the command line that a session gets at its opening."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from carousel.values import ModelInfo

Given: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--constant",
        metavar="NAME=NUMBER[,NUMBER...]|NAME=@FILE",
        help="Value that stays the same for the session, such as a language. May be repeated. A file has the numbers,"
        " row-major.",
    ),
]


def constants_of(info: ModelInfo, given: Sequence[str] | None) -> dict[str, Any]:
    """Returns the given constants by name, in the model's shapes. Raises typer.BadParameter for a name that the model
    does not have, and for a wrong number of numbers."""
    ports = {one.port.name: one.port for one in info.constants}
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise _wrong(f"{text!r:.60} must be NAME=NUMBER, or NAME=@FILE")
        if name not in ports:
            has = f"{', '.join(ports)}, but not" if ports else "no session constants: leave out"
            raise _wrong(f"{info.model} has {has} {name!r:.60}")
        if name in found:
            raise _wrong(f"{name} is given twice")
        numbers, shape = _numbers(name, value), ports[name].shape
        if len(numbers) != ports[name].size:
            raise _wrong(f"{name} has {len(numbers)} numbers, but {info.model} reads {list(shape)}")
        found[name] = _shaped(iter(numbers), shape)
    return found


def _numbers(name: str, value: str) -> list[float]:
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise _wrong(f"{name}: {value[1:]} cannot be read: {reason}") from None
    try:
        return [float(number) for number in value.replace(",", " ").split()]
    except ValueError:
        raise _wrong(f"{name} = {value!r:.60} must be numbers") from None


def _shaped(numbers: Iterator[float], shape: Sequence[int]) -> Any:
    if not shape:
        return next(numbers)
    return [_shaped(numbers, shape[1:]) for _ in range(shape[0])]


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--constant")
