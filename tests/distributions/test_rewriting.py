"""Imports, names and commands of moved packages are rewritten; everything else in a text stays."""

from __future__ import annotations

import pytest

from distributions.rewriting import Rewriter

MODULES = {"app", "app.core", "app.core.engine", "lib", "lib.text"}
REWRITER = Rewriter("all_of_it", ["app", "lib"], MODULES, {"app": "run-app"})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from app.core import x", "from all_of_it.app.core import x"),
        ("from app import core", "from all_of_it.app import core"),
        ("from  app . core import (\n    x,\n)", "from  all_of_it.app . core import (\n    x,\n)"),
        ("from \\\n  app.core import x", "from \\\n  all_of_it.app.core import x"),
        ("def f():\n    é = 'ü'; from lib.text import y", "def f():\n    é = 'ü'; from all_of_it.lib.text import y"),
        ("import app", "from all_of_it import app"),
        ("import app as a", "from all_of_it import app as a"),
        ("import app.core as c", "import all_of_it.app.core as c"),
        ("import app.core", "import all_of_it.app.core; from all_of_it import app"),
        (
            "if 1: import os, app.core as c, lib",
            "if 1: import os; import all_of_it.app.core as c; from all_of_it import lib",
        ),
    ],
)
def test_absolute_imports_get_the_new_package_in_front(code: str, expected: str) -> None:
    assert REWRITER.python(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        "from . import app",
        "from .app import core",
        "import application, os.app",
        "from other.app import core",
        "app.core.run(lib.text)",
        "# from app.core import x",
        "x = 'app.started'",
        "x = 'an app/1 of my.app.core'",
        "x = 'app: lib.texts'",
        "x = f'{app.core} {lib.text!r:>{app.core}}'",
        "x = 'python -m application'",
        "x = ['-m', 'app.started']",
    ],
)
def test_other_text_stays_unchanged(code: str) -> None:
    assert REWRITER.python(code) == code


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("patch('app.core.engine.step')", "patch('all_of_it.app.core.engine.step')"),
        (
            '"""See `lib.text` and app/core/engine.py."""',
            '"""See `all_of_it.lib.text` and all_of_it/app/core/engine.py."""',
        ),
        ("f'{{app.core}} {app.core} lib.text'", "f'{{all_of_it.app.core}} {app.core} all_of_it.lib.text'"),
        ("f'''\n{x['app.core']} app.core\n'''", "f'''\n{x['app.core']} all_of_it.app.core\n'''"),
        (r"'see:\napp.core\tlib/text.py'", r"'see:\nall_of_it.app.core\tall_of_it/lib/text.py'"),
        ("'usage: python -m app health'", "'usage: run-app health'"),
        ("'python -m lib'", "'python -m all_of_it.lib'"),
        ("'python -m lib.text'", "'python -m all_of_it.lib.text'"),
        ("[sys.executable, '-m', 'app', 'x']", "[sys.executable, '-m', 'all_of_it.app', 'x']"),
        ("(python, '-m', 'lib.text')", "(python, '-m', 'all_of_it.lib.text')"),
    ],
)
def test_strings_that_name_a_module_a_file_or_a_command_are_rewritten(code: str, expected: str) -> None:
    assert REWRITER.python(code) == expected


def test_prose_is_rewritten_as_strings_are() -> None:
    assert REWRITER.text("`python -m app` reads lib/text.py") == "`run-app` reads all_of_it/lib/text.py"


def test_every_line_keeps_its_number() -> None:
    code = "import app.core, lib\n\n'''app.core\nlib.text'''\nfrom lib import text\n"
    rewritten = REWRITER.python(code)
    assert len(rewritten.splitlines()) == len(code.splitlines())
    compile(rewritten, "module", "exec")
