"""The form of flags' values: what argparse gets of their text."""

from __future__ import annotations

import argparse

from pydantic import TypeAdapter, ValidationError

from service.repository.manifest import ModelName


def model_name(text: str) -> str:
    """A model's name."""
    try:
        return TypeAdapter(ModelName).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is no model's name: 1 to 64 of a-z, 0-9, '.', '_' and '-', of which the first is a-z or 0-9"
        ) from None


def count(text: str) -> int:
    """A whole number, 1 or more."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def version(text: str) -> int:
    """A bundle's version."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {2**31 - 1}")
    return int(text)


def pairs(text: str) -> str:
    """As it is: which of its equals signs is between two names, the file says."""
    pair(text)
    return text


def pair(text: str) -> tuple[str, str]:
    """A name, which may have equals signs, and a value, which has none."""
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def numbers(text: str) -> tuple[str, list[float]]:
    """A name and its numbers."""
    name, value = pair(text)
    try:
        return name, [float(part) for part in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} must be numbers, separated by commas") from None


def maybe_numbers(text: str) -> tuple[str, list[float] | None]:
    """A name, and its numbers where it has some."""
    return numbers(text) if "=" in text else (text, None)


def size(text: str) -> tuple[str, int]:
    """A name and a size, 1 or more."""
    name, value = pair(text)
    if not (value.isascii() and value.isdecimal() and int(value) >= 1):
        raise argparse.ArgumentTypeError(f"{value!r} must be a whole number, 1 or more")
    return name, int(value)


def length(text: str) -> int:
    """How long a source may be."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65536):  # the manifest's limit
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 65536")
    return int(text)


def place(text: str) -> tuple[str, int]:
    """A name and a place, 0 or more."""
    name, value = pair(text)
    if not (value.isascii() and value.isdecimal()):
        raise argparse.ArgumentTypeError(f"{value!r} must be a whole number, 0 or more")
    return name, int(value)
