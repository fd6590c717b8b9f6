"""Parses the values of flags, as parsers for typer. Each function raises typer.BadParameter."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError
from typer import BadParameter

from service.repository.manifest import ModelName


def model_name(text: str) -> str:
    """Parses a model's name."""
    try:
        return TypeAdapter(ModelName).validate_python(text)
    except ValidationError:
        raise BadParameter(
            f"{text[:80]!r} is not a model name: use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a-z or 0-9"
        ) from None


def pairs(text: str) -> str:
    """Checks NAME=NAME and returns it unchanged: only the file tells which equals sign separates the two names."""
    pair(text)
    return text


def pair(text: str) -> tuple[str, str]:
    """Parses NAME=VALUE; the name may contain equals signs."""
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise BadParameter(f"{text!r} must be NAME=VALUE")
    return name, value


def numbers(text: str) -> tuple[str, list[float]]:
    """Parses NAME=NUMBER[,NUMBER...]."""
    name, value = pair(text)
    try:
        return name, [float(part) for part in value.split(",")]
    except ValueError:
        raise BadParameter(f"{value!r} must be numbers, separated by commas") from None


def maybe_numbers(text: str) -> tuple[str, list[float] | None]:
    """Parses NAME or NAME=NUMBER[,NUMBER...]."""
    return numbers(text) if "=" in text else (text, None)


def size(text: str) -> tuple[str, int]:
    """Parses NAME=SIZE; the size is 1 or more."""
    name, value = pair(text)
    if not (value.isascii() and value.isdecimal() and int(value) >= 1):
        raise BadParameter(f"{value!r} must be an integer, 1 or more")
    return name, int(value)


def place(text: str) -> tuple[str, int]:
    """Parses NAME=PLACE; the place is 0 or more."""
    name, value = pair(text)
    if not (value.isascii() and value.isdecimal()):
        raise BadParameter(f"{value!r} must be an integer, 0 or more")
    return name, int(value)
