"""Parses messages from JSON. Refuses invalid JSON with one sentence that names the field, its value and what was
expected.

Also refuses values that protobuf's own parser accepts although its JSON format does not have them: a list or a string
for a message, true or a fraction for an enum, a string that is not base64 for bytes, and a field that is present under
both of its names. Does not know gRPC. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_Kind = TypeVar("_Kind", bound=Message)
_QUOTED = 60
_KNOWN = "google.protobuf."
"""Prefix of the messages that have their own JSON formats."""
_BASE_64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_CUT_OFF = 1
"""The remainder, after groups of four characters, that valid base64 cannot have."""
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: "an integer from -2147483648 to 2147483647",
    FieldDescriptor.CPPTYPE_UINT32: "an integer from 0 to 4294967295",
    FieldDescriptor.CPPTYPE_INT64: "an integer from -9223372036854775808 to 9223372036854775807",
    FieldDescriptor.CPPTYPE_UINT64: "an integer from 0 to 18446744073709551615",
    FieldDescriptor.CPPTYPE_FLOAT: 'a number of 32 bits, "NaN", "Infinity" or "-Infinity"',
    FieldDescriptor.CPPTYPE_DOUBLE: 'a number, "NaN", "Infinity" or "-Infinity"',
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "a string",
}
_FORMS = {
    "google.protobuf.Duration": 'seconds as a string, such as "1.5s"',
    "google.protobuf.Timestamp": 'a time as a string, such as "2026-01-31T12:00:00Z"',
}


class JsonError(Exception):
    """A request is not valid JSON for its message. The error's message names the field."""


def parse(data: bytes, kind: type[_Kind]) -> _Kind:
    """Returns the message that JSON text encodes; empty data is an empty message. Raises JsonError. Thread-safe."""
    descriptor: Any = kind.DESCRIPTOR  # one of two types without a common base
    try:
        value = _read(data) if data else {}
        if not isinstance(value, dict):
            raise _NoJsonError(f"it is {_quoted(value)}: expected an object, {{...}}")
        try:
            _check(value, descriptor, "", is_thorough=False)
            return json_format.ParseDict(value, kind())
        except json_format.ParseError:
            _check(value, descriptor, "", is_thorough=True)
        raise _NoJsonError("its objects are nested too deeply, or a field has an invalid value")
    except RecursionError:
        reason = "its lists or objects are nested too deeply"
    except _NoJsonError as error:
        reason = str(error)
    raise JsonError(f"the request is not JSON of {descriptor.full_name}: {reason}")


class _NoJsonError(Exception):
    """An error of the whole request and not of one field."""


def _read(data: bytes) -> Any:
    """Returns the value of JSON text. Raises _NoJsonError."""
    try:
        text = data.decode()
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _NoJsonError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        rest = text[error.pos : error.pos + _QUOTED]
        raise _NoJsonError(f"it is invalid at {where}, {f'before {_quoted(rest)}' if rest else 'at its end'}") from None
    except ValueError:
        raise _NoJsonError("an integer has too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise _NoJsonError(f"the key {_quoted(twice)} occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _NoJsonError(f'{name} must be in quotes, "{name}"')


def _check(value: Any, descriptor: Descriptor, path: str, *, is_thorough: bool) -> None:
    """Raises JsonError if a value is not JSON for a message. path: of the field with the value, empty for the request;
    is_thorough: whether to check every number and string as well."""
    if descriptor.full_name.startswith(_KNOWN):
        if is_thorough:
            _try(value, descriptor, path)
        return
    if not isinstance(value, dict):
        _refuse(path, value, f"an object, {{...}}, of {descriptor.full_name}")
    seen: dict[str, str] = {}
    for name, given in value.items():
        field = _field(descriptor, name)
        if field is None:
            names = ", ".join(one.name for one in descriptor.fields)
            known = f": expected one of {names}" if names else ", which has no fields"
            raise JsonError(f"{_quoted(_within(path, name))} is not a field of {descriptor.full_name}{known}")
        inner = _within(path, field.name)
        if given is None:
            continue
        group = field.containing_oneof
        key = field.name if group is None else f"oneof {group.name}"
        if key in seen:
            if seen[key] == field.name:
                raise JsonError(f"{inner} is given twice")
            raise JsonError(f"{_within(path, seen[key])} and {inner} are both set: set one")
        seen[key] = field.name
        _check_field(given, field, inner, is_thorough=is_thorough)


def _within(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    found = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
    return found or next((field for field in descriptor.fields if field.json_name == name), None)


def _check_field(value: Any, field: FieldDescriptor, path: str, *, is_thorough: bool) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        if not isinstance(value, dict):
            _refuse(path, value, "an object, {...}")
        of_values = inner.fields_by_name["value"]
        for name, given in value.items():
            _check_one(given, of_values, f"{path}[{_quoted(name)}]", is_thorough=is_thorough)
    elif field.is_repeated:
        if not isinstance(value, list):
            _refuse(path, value, "a list, [...]")
        for at, given in _possibly_invalid(value, field, is_thorough=is_thorough):
            _check_one(given, field, f"{path}[{at}]", is_thorough=is_thorough)
    else:
        _check_one(value, field, path, is_thorough=is_thorough)


def _possibly_invalid(values: list[Any], field: FieldDescriptor, *, is_thorough: bool) -> Iterable[tuple[int, Any]]:
    """Returns the values of a list that may be invalid, each with its index. For numbers and strings, of which there
    may be millions, returns at most one."""
    if field.message_type is not None or field.enum_type is not None or field.type == FieldDescriptor.TYPE_BYTES:
        return enumerate(values)
    if not is_thorough or _is_taken(values, field):
        return ()
    begin, end = 0, len(values)
    while end - begin > 1:  # the first invalid value is between begin and end
        middle = (begin + end) // 2
        begin, end = (middle, end) if _is_taken(values[begin:middle], field) else (begin, middle)
    return [(begin, values[begin])]


def _check_one(value: Any, field: FieldDescriptor, path: str, *, is_thorough: bool) -> None:
    """Checks one value of a field, of a list or of a map."""
    if field.message_type is not None:
        _check(value, field.message_type, path, is_thorough=is_thorough)
    elif field.enum_type is not None:
        if isinstance(value, bool | float | list | dict) or not _is_taken(
            [value] if field.is_repeated else value, field
        ):
            _refuse(path, value, f"one of {', '.join(field.enum_type.values_by_name)}")
    elif field.type == FieldDescriptor.TYPE_BYTES:
        is_text = isinstance(value, str) and _BASE_64.fullmatch(value)
        if not is_text or len(value.rstrip("=")) % 4 == _CUT_OFF:
            _refuse(path, value, "bytes in base64")
    elif is_thorough and not _is_taken([value] if field.is_repeated else value, field):
        is_lone = isinstance(value, str) and field.type == FieldDescriptor.TYPE_STRING
        _refuse(path, value, "a string without a lone surrogate" if is_lone else _NUMBERS[field.cpp_type])


def _is_taken(value: Any, field: FieldDescriptor) -> bool:
    """Whether protobuf accepts the value for the field."""
    return _parses({field.json_name: value}, field.containing_type)


def _try(value: Any, descriptor: Descriptor, path: str) -> None:
    if not _parses(value, descriptor):
        _refuse(path, value, _FORMS.get(descriptor.full_name, f"JSON of {descriptor.full_name}"))


def _parses(value: Any, descriptor: Any) -> bool:
    try:
        json_format.ParseDict(value, GetMessageClass(descriptor)())
    except (json_format.ParseError, RecursionError):
        return False
    return True


def _refuse(path: str, value: Any, expected: str) -> NoReturn:
    raise JsonError(f"{path or 'the request'} = {_quoted(value)} must be {expected}")


def _quoted(value: Any) -> str:
    """Returns a value as JSON text, shortened."""
    if isinstance(value, str):
        value = value[: _QUOTED + 1]
    elif isinstance(value, list | Mapping) and len(value) > _QUOTED:
        return "a long list" if isinstance(value, list) else "a large object"
    text = json.dumps(value)
    return text if len(text) <= _QUOTED + 2 else f"{text[:_QUOTED]}..."
