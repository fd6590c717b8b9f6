"""Parses the values of flags, as types for argparse. Each function raises argparse.ArgumentTypeError."""

from __future__ import annotations

import argparse

from pydantic import TypeAdapter, ValidationError

from service.repository.manifest import ModelName


def model_name(text: str) -> str:
    """Parses a model's name."""
    try:
        return TypeAdapter(ModelName).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is no model's name: 1 to 64 of a-z, 0-9, '.', '_' and '-', of which the first is a-z or 0-9"
        ) from None


def count(text: str) -> int:
    """Parses a whole number, 1 or more."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def version(text: str) -> int:
    """Parses a bundle's version, 1 to 2**31 - 1."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {2**31 - 1}")
    return int(text)


def pairs(text: str) -> str:
    """Checks NAME=NAME and returns it unchanged: only the file tells which equals sign separates the two names."""
    pair(text)
    return text


def pair(text: str) -> tuple[str, str]:
    """Parses NAME=VALUE; the name may contain equals signs."""
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def numbers(text: str) -> tuple[str, list[float]]:
    """Parses NAME=NUMBER[,NUMBER...]."""
    name, value = pair(text)
    try:
        return name, [float(part) for part in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} must be numbers, separated by commas") from None


def maybe_numbers(text: str) -> tuple[str, list[float] | None]:
    """Parses NAME or NAME=NUMBER[,NUMBER...]."""
    return numbers(text) if "=" in text else (text, None)


def size(text: str) -> tuple[str, int]:
    """Parses NAME=SIZE; the size is 1 or more."""
    name, value = pair(text)
    if not (value.isascii() and value.isdecimal() and int(value) >= 1):
        raise argparse.ArgumentTypeError(f"{value!r} must be a whole number, 1 or more")
    return name, int(value)


def length(text: str) -> int:
    """Parses a source's largest length, 1 to 65536."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65536):  # the manifest's limit
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 65536")
    return int(text)


def place(text: str) -> tuple[str, int]:
    """Parses NAME=PLACE; the place is 0 or more."""
    name, value = pair(text)
    if not (value.isascii() and value.isdecimal()):
        raise argparse.ArgumentTypeError(f"{value!r} must be a whole number, 0 or more")
    return name, int(value)
