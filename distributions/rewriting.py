"""Moves packages below another package: rewrites absolute imports, and strings that name modules, files and commands.

Knows Python's grammar and tokens, and nothing of this project. `P` is a moved package, `new` the package above it.
Rules:

1. A rewrite inserts text, or replaces text within one line. So every line keeps its number.
2. `from P.x import y` and `import P.x as y` get the prefix `new.`. `import P.x` binds the name `P`, so it becomes
   `import new.P.x; from new import P`. Relative imports do not change.
3. In strings, `P.x` and `P/x` get the prefix if such a module exists. Other text that begins with `P.` does not change,
   such as the name of a log event.
4. `python -m P` in a string becomes the command of P if P has one. `"-m", "P"` in a list names a module, which gets the
   prefix.
5. Code between the braces of an f-string does not change.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

_F_STRING_START = getattr(tokenize, "FSTRING_START", -1)
_F_STRING_END = getattr(tokenize, "FSTRING_END", -1)


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces `length` characters of a text, from `offset` on, by `text`."""

    offset: int
    length: int
    text: str


class Rewriter:
    """Moves the packages `moved` below the package `below`.

    modules: the dotted names of all moved modules.
    programs: by package, the command that replaces `python -m PACKAGE`.
    """

    def __init__(
        self, below: str, moved: Collection[str], modules: Collection[str], programs: Mapping[str, str]
    ) -> None:
        self._below, self._moved, self._modules, self._programs = below, set(moved), set(modules), dict(programs)
        names = "|".join(sorted(map(re.escape, moved)))
        self._named = re.compile(rf"(?:(?<![\w./-])|(?<=\\[nt]))(?:{names})(?:[./]\w+)+")
        self._run = re.compile(rf"python -m (?P<package>{names})(?![\w.])")

    def python(self, code: str) -> str:
        """Returns the rewritten code of a module. Raises SyntaxError when `code` is not Python."""
        starts = _line_starts(code)
        edits: list[Edit] = []
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and not node.level and self._is_moved(node.module or ""):
                edits.append(Edit(_module_offset(code, starts, node), 0, f"{self._below}."))
            elif isinstance(node, ast.Import) and any(self._is_moved(alias.name) for alias in node.names):
                begin, end = _span(code, starts, node)
                edits.append(Edit(begin, end - begin, self._imports(node)))
            elif isinstance(node, ast.List | ast.Tuple):
                edits += self._arguments(code, starts, node)
        taken = {edit.offset for edit in edits}
        for begin, end in _strings(code, starts):
            edits += [edit for edit in self._in_string(code, begin, end) if edit.offset not in taken]
        return _applied(code, edits)

    def text(self, text: str) -> str:
        """Returns rewritten prose that names modules, files and commands."""
        return _applied(text, list(self._names(text, 0)))

    def _is_moved(self, module: str) -> bool:
        return module.partition(".")[0] in self._moved

    def _imports(self, node: ast.Import) -> str:
        statements = []
        for alias in node.names:
            suffix = f" as {alias.asname}" if alias.asname else ""
            if not self._is_moved(alias.name):
                statements.append(f"import {alias.name}{suffix}")
                continue
            if "." not in alias.name:
                statements.append(f"from {self._below} import {alias.name}{suffix}")
                continue
            statements.append(f"import {self._below}.{alias.name}{suffix}")
            if not alias.asname:
                statements.append(f"from {self._below} import {alias.name.partition('.')[0]}")
        return "; ".join(statements)

    def _arguments(self, code: str, starts: list[int], node: ast.List | ast.Tuple) -> Iterator[Edit]:
        for flag, name in zip(node.elts, node.elts[1:], strict=False):
            if not (isinstance(flag, ast.Constant) and flag.value == "-m" and isinstance(name, ast.Constant)):
                continue
            if isinstance(name.value, str) and name.value in self._modules:
                begin, end = _span(code, starts, name)
                yield Edit(begin + code[begin:end].index(name.value), 0, f"{self._below}.")

    def _in_string(self, code: str, begin: int, end: int) -> Iterator[Edit]:
        literal = code[begin:end]
        prefix = re.match(r"\w*", literal)
        is_formatted = prefix is not None and "f" in prefix.group().lower()
        for piece_begin, piece in _outside_braces(literal) if is_formatted else [(0, literal)]:
            yield from self._names(piece, begin + piece_begin)

    def _names(self, text: str, offset: int) -> Iterator[Edit]:
        for match in self._run.finditer(text):
            package = match["package"]
            if package in self._programs:
                yield Edit(offset + match.start(), len(match.group()), self._programs[package])
            elif package in self._modules:
                yield Edit(offset + match.start("package"), 0, f"{self._below}.")
        for match in self._named.finditer(text):
            if self._is_there(match.group()):
                separator = "/" if "/" in match.group() else "."
                yield Edit(offset + match.start(), 0, f"{self._below}{separator}")

    def _is_there(self, name: str) -> bool:
        """Returns whether the first two parts of `name` are a module, as in `export.torch_model.TorchModel`."""
        return ".".join(re.split(r"[./]", name)[:2]) in self._modules


def _line_starts(code: str) -> list[int]:
    starts = [0]
    for line in io.StringIO(code, newline="\n"):
        starts.append(starts[-1] + len(line))
    return starts


def _offset(code: str, starts: list[int], line: int, column_bytes: int) -> int:
    """Returns the offset in characters; ast counts columns in bytes of UTF-8."""
    start = starts[line - 1]
    text = code[start : starts[line]] if line < len(starts) else code[start:]
    return start + len(text.encode()[:column_bytes].decode())


def _span(code: str, starts: list[int], node: ast.expr | ast.stmt) -> tuple[int, int]:
    if node.end_lineno is None or node.end_col_offset is None:
        raise ValueError(f"a node of line {node.lineno} has no end")
    return (
        _offset(code, starts, node.lineno, node.col_offset),
        _offset(code, starts, node.end_lineno, node.end_col_offset),
    )


def _module_offset(code: str, starts: list[int], node: ast.ImportFrom) -> int:
    begin, end = _span(code, starts, node)
    statement = code[begin:end]
    inner = _line_starts(statement)
    names = [t for t in tokenize.generate_tokens(io.StringIO(statement).readline) if t.type == tokenize.NAME]
    line, column = names[1].start  # names[0] is `from`
    return begin + inner[line - 1] + column


def _strings(code: str, starts: list[int]) -> Iterator[tuple[int, int]]:
    """Yields the begin and end of each string literal. An f-string is one literal, including nested strings."""
    depth, begin = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        first = starts[token.start[0] - 1] + token.start[1]
        last = starts[token.end[0] - 1] + token.end[1]
        if token.type == _F_STRING_START:
            begin = begin if depth else first
            depth += 1
        elif token.type == _F_STRING_END:
            depth -= 1
            if not depth:
                yield begin, last
        elif token.type == tokenize.STRING and not depth:
            yield first, last


def _outside_braces(literal: str) -> Iterator[tuple[int, str]]:
    """Yields the text pieces of an f-string, each with its begin. `{{` and `}}` are text."""
    depth, begin, at = 0, 0, 0
    while at < len(literal):
        character = literal[at]
        if not depth and literal[at : at + 2] in ("{{", "}}"):
            at += 2
            continue
        if character == "{":
            if not depth:
                yield begin, literal[begin:at]
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            begin = at + 1
        at += 1
    yield begin, literal[begin:]


def _applied(text: str, edits: list[Edit]) -> str:
    for edit in sorted(edits, key=lambda edit: edit.offset, reverse=True):
        text = text[: edit.offset] + edit.text + text[edit.offset + edit.length :]
    return text
