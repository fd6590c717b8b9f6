"""The types that mypy infers for users' programs are those that the programs have at run time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from examples.local_service import LocalService

ROOT = Path(__file__).parent.parent

PROGRAM = """
import asyncio
import sys

from carousel import AsyncClient, Client, ValueToken

MONTHS = [[370.0]] * 12


def blocking(target: str) -> None:
    with Client(target) as client:
        for token in client.generate("g2p-en", "cat"):
            reveal_type(token)
            print(token.id, token.text, token.log_probability, token.values)
        for token in client.generate("co2-forecast", MONTHS, max_tokens=2):
            reveal_type(token.values)
            print(token.text, sum(token.values))
            if isinstance(token, ValueToken):
                (value,) = token
                reveal_type(value)
                print(value == token[0] == token.values[0], len(token))
        reveal_type(client.generate("co2-forecast", MONTHS, max_tokens=2).vectors())
        reveal_type(client.forecast("co2-forecast", 2, MONTHS))
        with client.session("co2-forecast", MONTHS) as session:
            reveal_type(session)
            for token in session.generate(max_tokens=2):
                print(token.values)
            reveal_type(session.cancel())
        sampled = client.generate("g2p-en", "cat", temperature=2.0)
        reveal_type(sampled.seed)


async def asynchronous(target: str) -> None:
    async with AsyncClient(target) as client:
        async for token in client.generate("co2-forecast", MONTHS, max_tokens=2):
            reveal_type(token.values)
        async with client.session("co2-forecast", MONTHS) as session:
            reveal_type(session)
            reveal_type(await session.generate(max_tokens=2).vectors())
            reveal_type(await session.cancel())


blocking(sys.argv[1])
asyncio.run(asynchronous(sys.argv[1]))
"""


def mypy(folder: Path, program: str) -> list[str]:
    """Returns the lines of `mypy --strict` for a program, without the file name."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports", "silent"]
    command += ["--cache-dir", str(folder / "cache"), "program.py"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return [line.removeprefix("program.py:") for line in done.stdout.splitlines()]


def test_types_that_mypy_reveals_hold_at_run_time(tmp_path: Path, shipped_service: LocalService) -> None:
    said = mypy(tmp_path, PROGRAM)
    revealed = [line.split('"')[1] for line in said if "Revealed type" in line]
    assert len(revealed) == len(said) - 1, said
    assert said[-1] == "Success: no issues found in 1 source file"
    assert not any("Any" in kind for kind in revealed)
    short = [kind.replace("builtins.", "").replace("carousel.values.", "") for kind in revealed]
    assert short == [
        "Token",
        "tuple[float, ...]",
        "float",
        "list[tuple[float, ...]]",
        "list[tuple[float, ...]]",
        "carousel.session.Session",
        "int",
        "int | None",
        "tuple[float, ...]",
        "carousel.async_session.AsyncSession",
        "list[tuple[float, ...]]",
        "int",
    ]
    without = PROGRAM.replace("import sys\n", "import sys\nfrom typing import reveal_type\n", 1)
    ran = subprocess.run(
        [sys.executable, "-c", without, shipped_service.target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "True 1\n" in ran.stdout


def test_mypy_refuses_wrong_uses_of_tokens(tmp_path: Path) -> None:
    wrong = ["token.value", "token[0]", "(value,) = token"]
    lines = "\n    ".join(wrong)
    said = mypy(tmp_path, f"from carousel import Token\n\n\ndef use(token: Token) -> None:\n    {lines}\n")
    assert [line.split(" ")[:2] for line in said[:-1]] == [[f"{5 + at}:", "error:"] for at in range(len(wrong))]
