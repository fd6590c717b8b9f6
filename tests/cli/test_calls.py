"""The command line runs in a child process against a real service, as users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import carousel
from carousel import Client, SessionStep, UnavailableError
from carousel.cli.reading import visible
from carousel.cli.step import step
from examples.local_service import LocalService
from tests.certificates import Authority
from tests.cli.shell import COMMAND, Shell
from tests.conftest import ROOT
from tests.fork_server import run


@pytest.fixture
def shell(shipped_service: LocalService) -> Shell:
    return Shell(shipped_service.target)


def test_models_are_listed(shell: Shell) -> None:
    assert "g2p-en" in shell.out("models")
    models = [json.loads(line) for line in shell.out("models", "--json").splitlines()]
    assert [(model["model"], model["version"], model["status"]) for model in models] == [
        (name, 1, "serving")
        for name in ("co2-forecast", "g2p-en", "morse", "pychar-en", "stress-en", "translate-en-de")
    ]


def test_generate_prints_tokens_and_the_finish_reason_as_json(shell: Shell) -> None:
    assert shell.out("generate", "g2p-en", "gate") == "G EY T\n"
    found = {"source": "gate", "tokens": ["G", "EY", "T"], "finish_reason": "eos"}
    assert shell.json("generate", "g2p-en", "gate") == found
    assert shell.json("generate", "g2p-en", "gate", "--max-tokens", "1")["finish_reason"] == "max_tokens"


def test_generate_takes_a_file_of_sources(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("gate\n\nforget\n")
    assert shell.out("generate", "g2p-en", "-i", str(tmp_path / "words")) == "G EY T\nF AO R G EH T\n"
    assert shell.out("generate", "g2p-en", "-i", "-", typed="gate\n") == "G EY T\n"


def test_generate_searches(shell: Shell) -> None:
    lines = shell.out("generate", "g2p-en", "elephant", "--beam-size", "4", "--num-best", "2").splitlines()
    assert len(lines) == 2
    assert lines[0].split()[1:] == ["EH", "L", "AH", "F", "AH", "N", "T"]
    scores = [one["score"] for one in shell.json("generate", "g2p-en", "elephant", "--beam-size", "4")["hypotheses"]]
    assert scores == sorted(scores, reverse=True)
    for option in ("--length-penalty", "--num-best"):
        refused = shell.run("generate", "g2p-en", "gate", option, "1", code=2)
        assert f"{option} needs --beam-size" in refused.stderr.decode()


def test_a_session_by_hand(shell: Shell) -> None:
    """The command shows the first output, feeds, rewinds, generates, survives an unknown token, and resumes the
    session."""
    typed = "G\n\n:where\n:back\n:where\nnope\n:generate 2\n:what\n:help\n"
    done = shell.run("stream", "g2p-en", "gate", "--id", "by-hand", "--keep", "--keep-going", typed=typed, code=1)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert out.count("PROBABILITY") == 4
    assert [line for line in out.splitlines() if line.startswith("session")] == [
        "session by-hand, position 2",
        "session by-hand, position 1",
    ]
    assert "EY T" in out
    assert "standard input, line 6: feed.tokens[0] = 'nope' is not in the vocabulary" in err
    assert "standard input, line 8: ':what' is not a command" in err
    assert ":generate [N]" in err
    assert "position 3" in shell.out("stream", "g2p-en", "--id", "by-hand", "--resume", typed=":where\n:quit\n:where\n")
    shell.run("sessions", "get", "by-hand", code=4)


@pytest.mark.parametrize("words", [("pychar-en",), ("nosuch",), ("g2p-en", "--version", "9")])
def test_a_session_of_another_model_is_not_resumed(shell: Shell, words: tuple[str, ...]) -> None:
    shell.run("stream", "g2p-en", "gate", "--id", "theirs", "--keep", typed="G\n")
    refused = shell.run("stream", *words, "--id", "theirs", "--resume", typed="EY\n", code=2)
    assert "session theirs is of g2p-en/1: give that model" in refused.stderr.decode()
    with Client(shell.target) as client:
        assert client.sessions.get("theirs").position == 1
        client.sessions.close("theirs")


def test_a_session_of_characters_by_hand(shell: Shell) -> None:
    """Each character of a line is a token, also white space, which is printed visibly."""
    done = shell.run("stream", "pychar-en", typed="def f(x):\n:where\n:generate 5\n")
    out = done.stdout.decode()
    assert "⏎" in out
    assert "position 9" in out


def test_a_session_of_numbers_by_hand(shell: Shell) -> None:
    """Vectors are typed and printed with commas. An empty line feeds the predicted value. `:generate` forecasts."""
    months = " ".join(f"{340 + index % 3}" for index in range(15))
    out = shell.out("stream", "co2-forecast", months, typed="341\n\n:generate 3\n").splitlines()
    values = [float(line) for line in out]
    assert len(values) == 6
    assert all(300 < value < 400 for value in values)
    done = shell.run("stream", "co2-forecast", months, "--keep-going", typed="1,2\nx\n", code=1)
    assert "feed.features.shape = [1, 2] must be [steps, 1]" in done.stderr.decode()
    assert "could not convert string to float: 'x'" in done.stderr.decode()


def test_a_text_is_fed_token_by_token(shell: Shell, tmp_path: Path) -> None:
    """A file and a pipe give one line for each token, with the next token; `--top` adds candidates, `--json` prints
    objects."""
    text = "def read(self):\n    return self.text\n" * 2
    (tmp_path / "code.py").write_text(text)
    out = shell.out("stream", "pychar-en", "-", typed=text)
    assert out == shell.out("stream", "pychar-en", str(tmp_path / "code.py"))
    rows = [line.split("\t") for line in out.splitlines()]
    assert [int(position) for position, _, _ in rows] == list(range(1, len(text) + 1))
    with Client(shell.target) as client, client.session("pychar-en") as session:
        expected = session.feed(list(text), every_position=True, top_k=1).outputs
    assert [token for _, token, _ in rows] == [visible(one.tokens[0].text) for one in expected]
    assert all(0 < float(share) <= 1 for _, _, share in rows)
    found = [json.loads(line) for line in shell.out("stream", "pychar-en", "-", "--json", typed="de").splitlines()]
    assert [(one["position"], one["tokens"][0]["text"]) for one in found] == [
        (at, one.tokens[0].text) for at, one in enumerate(expected[:2], 1)
    ]
    assert shell.out("stream", "pychar-en", "-", "--top", "3", typed="d").count("\t") == 6


def test_phonemes_are_tagged_as_they_come(shell: Shell) -> None:
    rows = [line.split("\t") for line in shell.out("stream", "stress-en", "-", typed="L UW\nIY S |").splitlines()]
    assert [position for position, _, _ in rows] == ["1", "2", "3", "4", "5"]
    assert {tag for _, tag, _ in rows} <= {"-", "0", "1", "2"}
    for _ in range(2):  # the session of the first run was fed nothing, so its id is free for the second run
        words = ("stream", "stress-en", "-", "--id", "vain", "--keep")
        refused = shell.run(*words, typed="nope", code=1).stderr.decode()
    assert "= 'nope' is not in the input vocabulary" in refused


def test_a_model_with_an_encoder_is_fed_a_file_after_its_source(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("G EY")
    rows = shell.out("stream", "g2p-en", "gate", "-i", str(tmp_path / "tokens")).splitlines()
    assert [row.split("\t")[:2] for row in rows] == [["1", "EY"], ["2", "T"]]
    months = " ".join(f"{340 + index % 3}" for index in range(15))
    (tmp_path / "months.csv").write_text("341\n342\n")
    typed = shell.out("stream", "co2-forecast", months, typed="341\n342\n").splitlines()
    fed = shell.out("stream", "co2-forecast", months, "-i", str(tmp_path / "months.csv")).splitlines()
    assert fed == [f"{at}\t{value}" for at, value in enumerate(typed[1:], 1)]


def test_numbers_are_forecast(shell: Shell) -> None:
    out = shell.out("generate", "co2-forecast", "345 346 347", "--max-tokens", "4").splitlines()
    found = shell.json("generate", "co2-forecast", "345 346 347", "--max-tokens", "4")["values"]
    assert [f"{value:g}" for (value,) in found] == out
    refused = shell.run("generate", "co2-forecast", "one two", code=2).stderr.decode()
    assert "reads numbers" in refused


def test_a_prompt_is_split_as_the_model_splits_it(shell: Shell) -> None:
    out = shell.out("generate", "pychar-en", "--prompt", "    for i in ra", "--max-tokens", "4")
    assert out == "nge(\n"


def test_a_model_is_inspected(shell: Shell, tmp_path: Path) -> None:
    """The result is a picture, one HTML page without external files, text, or numbers."""
    picture, page = tmp_path / "look.png", tmp_path / "look.html"
    shell.run("inspect", "g2p-en", "gate", "-o", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    shell.run("inspect", "pychar-en", "x = $1\n", "-o", str(page))
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "forget gate" in text
    assert not re.findall(r"(?:src|href)=.https?:", text), "it needs nothing else"
    drawn = shell.out("inspect", "g2p-en", "gate", "-o", "-").splitlines()
    assert drawn[0].split() == list("gate")
    assert [line.split()[0] for line in drawn[1:5]] == ["G", "EY", "T", "</s>"]
    assert drawn[1].endswith(" ██")
    found = shell.json("inspect", "g2p-en", "gate")
    assert (found["steps"], found["told"]) == (["start", "G", "EY", "T"], ["G", "EY", "T", "</s>"])
    assert found["source"] == list("gate")
    attention = found["traces"]["attention"]
    assert [len(row) for row in attention] == [4] * 4
    assert all(abs(sum(row) - 1) < 1e-4 for row in attention)
    assert len(found["traces"]["layer1.forget_gate"][0]) == 256


def test_numbers_are_inspected(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "months.csv").write_text("".join(f"{340 + index % 5}\n" for index in range(14)))
    found = shell.json("inspect", "co2-forecast", "--features", str(tmp_path / "months.csv"), "--steps", "3")
    assert len(found["steps"]) == 4
    assert found["steps"][1:] == found["told"][:3]
    np.save(tmp_path / "months.npy", np.array([[340 + index % 5] for index in range(14)]))
    assert shell.json("inspect", "co2-forecast", "--features", str(tmp_path / "months.npy"), "--steps", "3") == found
    for name, content, reported in (
        ("months.npz", b"\x93NUMPY", "months.npz is not UTF-8 text"),
        ("text.npy", b"1\n2\n", "text.npy"),
        ("flat.npy", (tmp_path / "months.npy").read_bytes().replace(b"(14, 1)", b"(14,)  "), "shape [14] of int64"),
    ):
        (tmp_path / name).write_bytes(content)
        refused = shell.run("inspect", "co2-forecast", "--features", str(tmp_path / name), code=2).stderr.decode()
        assert reported in refused
    typed = " ".join(f"{340 + index % 5}" for index in range(14))
    assert shell.json("inspect", "co2-forecast", typed, "--steps", "3") == found
    (tmp_path / "wrong.csv").write_text("1\ntwo\n")
    refused = shell.run("inspect", "co2-forecast", "--features", str(tmp_path / "wrong.csv"), code=2).stderr.decode()
    assert "wrong.csv, line 2: could not convert string to float: 'two'" in refused


def test_a_transducer_is_inspected(shell: Shell, tmp_path: Path) -> None:
    """Each frame is one step, also if it emits no token, as most frames do."""
    with Client(shell.target) as client:
        size = client.model("morse").feature_size
    np.save(tmp_path / "frames.npy", np.zeros((5, size), np.float32))
    found = shell.json("inspect", "morse", "--features", str(tmp_path / "frames.npy"))
    assert (len(found["steps"]), found["told"]) == (5, [""] * 5)
    assert all(len(rows) == 5 for rows in found["traces"].values())


@pytest.mark.parametrize("model", ["co2-forecast", "stress-en"])
def test_models_of_all_kinds_are_measured(shell: Shell, model: str) -> None:
    found = shell.json("bench", model, "--sessions", "3", "--seconds", "0.2")
    assert found["messages"] > 0


def test_sessions_are_seen_copied_and_closed(shell: Shell, tmp_path: Path) -> None:
    shell.run("stream", "g2p-en", "gate", "--id", "mine", "--keep", typed="G EY\n")
    assert "mine" in shell.out("sessions", "list")
    assert shell.json("sessions", "get", "mine")["position"] == 2
    shell.run("sessions", "snapshot", "mine", "--to", str(tmp_path / "mine"))
    piped = shell.run("sessions", "snapshot", "mine", "--to", "-").stdout
    assert len(piped) == (tmp_path / "mine").stat().st_size
    restored = shell.run("sessions", "restore", "-", "--id", "copied", "--json", typed=piped).stdout
    assert json.loads(restored)["position"] == 2
    listed = [json.loads(line)["session_id"] for line in shell.out("sessions", "list", "--json").splitlines()]
    assert {"mine", "copied"} <= set(listed)
    shell.run("sessions", "close", "mine", "copied")
    assert shell.run("sessions", "list", "--model", "none").stderr.decode() == "no sessions\n"


def test_bench_counts(shell: Shell) -> None:
    found = shell.json("bench", "g2p-en", "--sessions", "4", "--seconds", "0.5", "--tokens", "2")
    assert found["messages"] > 10
    assert found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert found["tokens_per_s"] == pytest.approx(2 * found["messages_per_s"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("generate", "nope", "x"), 4, "model = 'nope' does not exist"),
        (("generate", "g2p-en"), 1, "source is missing"),
        (("generate",), 2, "Missing argument"),
        (("generate", "g2p-en", "x", "--top-k", "0"), 2, "top-k"),
        (("generate", "g2p-en", "x", "-i", "y"), 2, "not both"),
        (("sessions", "get", "nobody"), 4, "session_id = 'nobody' is unknown"),
        (("sessions", "restore", "/nowhere"), 2, "/nowhere cannot be read: No such file"),
        (("stream", "g2p-en", "--resume"), 2, "--resume needs --id"),
        (("stream", "pychar-en", "/nowhere"), 2, "error: /nowhere cannot be read: No such file or directory"),
        (("stream", "pychar-en", "a", "-i", "b"), 2, "pychar-en has no encoder"),
        (("stream", "pychar-en", "-", "--format", "s16"), 2, "are for samples, and pychar-en reads tokens"),
        (("stream", "pychar-en", "--rate", "1"), 2, "need a file"),
        (("stream", "pychar-en", "-", "--keep-going"), 2, "--keep-going is for typed lines, not for a file"),
        (("inspect", "pychar-en", ""), 2, "there is no step to show: give pychar-en at least one"),
        (("inspect", "pychar-en", "a", "--feed", "b"), 2, "--feed is for tokens after a source"),
        (("inspect", "co2-forecast", "1 2", "--feed", "3"), 2, "--feed is for tokens after a source"),
        (("inspect", "g2p-en", "a", "--json", "-o", "a.png"), 2, "give either --json or --to"),
        (("inspect", "g2p-en", "a", "-o", "/nowhere/a.png"), 2, "/nowhere/a.png: No such file or directory"),
        (("forecast", "co2-forecast", "370", "--constant", "a=1"), 2, "has no session constants: leave out 'a'"),
        (("nonsense",), 2, "No such command"),
        (("--cert", "x", "models"), 2, "--cert and --key must be given together"),
    ],
)
def test_errors_are_printed_with_their_exit_code(shell: Shell, words: tuple[str, ...], code: int, message: str) -> None:
    done = shell.run(*words, code=code)
    assert message in done.stderr.decode()
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_invalid_certificate_files_are_named(shell: Shell, tmp_path: Path) -> None:
    """The command checks the files before it connects."""
    authority = Authority()
    one, other = authority.issue(common=["one"]), authority.issue(common=["other"])
    for name, content in (("cert", one.certificate), ("key", one.key), ("other", other.key), ("text", b"hello")):
        (tmp_path / name).write_bytes(content)
    wrong = [
        (("--ca", "text"), "text has no certificate of an authority in PEM"),
        (("--ca", "nowhere"), f"{tmp_path}/nowhere: No such file or directory"),
        (("--cert", "text", "--key", "key"), "are not a certificate and its private key in PEM"),
        (("--cert", "cert", "--key", "text"), "are not a certificate and its private key in PEM"),
        (
            ("--cert", "cert", "--key", "other"),
            "other are not a certificate and its private key in PEM: KEY_VALUES_MISMATCH",
        ),
        (("--cert", "cert", "--key", "nowhere"), f"{tmp_path}/nowhere: No such file or directory"),
    ]
    for words, found in wrong:
        paths = [word if word.startswith("-") else str(tmp_path / word) for word in words]
        done = shell.run(*paths, "models", code=2)
        assert found in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_has_its_exit_code() -> None:
    done = Shell("127.0.0.1:1").run("--timeout", "1", "models", "--json", code=3)
    assert json.loads(done.stderr)["error"]["code"] == "UNAVAILABLE"


def test_help_describes_every_command_and_option(shell: Shell) -> None:
    overview = shell.out("--help")
    assert all(name in overview for name in ("models", "generate", "stream", "sessions", "bench", "--token"))
    assert "Exit codes" in overview
    sections = re.findall(r"^(\S.*):$", overview, re.MULTILINE)
    assert sections[:2] == ["Models", "Sequences, each in its own session"]
    assert sections[2:] == ["Sessions", "Measuring", "Options", "Connection"]
    assert shell.run(code=2).stdout.decode() == overview
    message = " ".join(shell.out("stream", "--help").split())
    assert message.index("Feeds a session from a file, a pipe or the keyboard") < message.index("feeds each typed line")
    assert re.search(r"stream +Feeds a session from a file, a pipe", overview)
    for command in ("models", "generate", "inspect", "bench"):
        assert "Usage:" in shell.out(command, "--help")
    of_sessions = shell.out("sessions", "--help")
    assert all(name in of_sessions for name in ("list", "get", "snapshot", "restore", "close"))


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_shells_complete(name: str) -> None:
    """The command prints the completion script, and answers the script's requests."""
    command = [str(Path(sys.executable).parent / "carousel")]

    def ask(**variables: str) -> str:
        environment = {**os.environ, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30).stdout

    assert "_CAROUSEL_COMPLETE" in ask(_CAROUSEL_COMPLETE=f"source_{name}")
    if name == "bash":
        assert ask(_CAROUSEL_COMPLETE="complete_bash", COMP_WORDS="carousel sess", COMP_CWORD="1").strip() == "sessions"


@pytest.mark.parametrize("place", ["carousel", "carousel.cli.app"])
def test_version_is_printed(place: str) -> None:
    assert run(place, "--version").stdout.decode() == f"carousel {carousel.__version__}\n"


def test_version_works_without_the_clis_libraries() -> None:
    code = "import sys; sys.modules['typer'] = None; from carousel.cli.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"carousel {carousel.__version__}\n"


def test_without_its_libraries_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from carousel.cli.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, f"the command line needs typer: ./scripts/setup cli (in {ROOT})\n")


def test_step_opens_feeds_and_closes_one_call_after_the_other(shell: Shell) -> None:
    done = shell.run("step", "by-hand", "G", "--model", "g2p-en", "--source", "gate", "--top", "2")
    assert "EY" in done.stdout.decode()
    assert b"session by-hand of g2p-en/1: at position 1" in done.stderr
    found = shell.json("step", "by-hand")
    assert (found["position"], found["restored_from"], found["outputs"]) == (1, "memory", [])
    again = shell.json("step", "by-hand", "G", "--position", "0", "--top", "2")
    assert (again["position"], again["replayed"]) == (1, True)
    wrong = shell.run("step", "by-hand", "T", "--position", "5", code=1)
    assert b"feed.position = 5, but the session is at position 1" in wrong.stderr
    last = shell.run("step", "by-hand", "EY T", "--close")
    assert b"session by-hand of g2p-en/1: closed at position 3" in last.stderr
    assert b"is gone: it was closed by a client at position 3" in shell.run("step", "by-hand", code=4).stderr
    assert b"need --model" in shell.run("step", "by-hand", "--source", "gate", code=2).stderr


def test_watch_shows_what_happens_to_a_session_until_it_ends(shell: Shell) -> None:
    with Client(shell.target) as client:
        client.step("watched", ["G"], model="g2p-en", source="gate", position=0)
        command = [*COMMAND, "--target", shell.target, "watch", "watched"]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as people,
            subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as programs,
        ):
            assert people.stdout is not None
            assert programs.stdout is not None
            assert people.stdout.readline() == "1\twatching\tg2p-en/1 fp32, durability checkpoint\n"
            begun = json.loads(programs.stdout.readline())
            assert (begun["event"], begun["position"], begun["model"]) == ("watching", 1, "g2p-en")
            step = client.step("watched", ["EY"], position=1, top_k=2)
            assert re.fullmatch(r"2\tfed\tEY\tnext: T \d+\.\d\d%, \w+ \d+\.\d\d%\n", people.stdout.readline())
            output = json.loads(programs.stdout.readline())
            assert (output["event"], output["tokens"][0]["text"]) == ("fed", "EY")
            assert output["step"]["outputs"][0]["tokens"][0]["text"] == step.token.text
            with client.resume("watched") as session:
                assert [token.text for token in session.generate()] == ["T"]
            rest = people.stdout.read()
            assert rest.startswith("2\tchanged\tattached\n3\tgenerated\tT")
            assert "end: eos\n" in rest
            assert rest.endswith("3\tclosed\tclient\n")
            assert [json.loads(line)["event"] for line in programs.stdout][-1] == "closed"
            assert (people.wait(), programs.wait()) == (0, 0)
    assert b"is gone: it was closed by a client at position 3" in shell.run("watch", "watched", code=4).stderr


def test_watch_is_ended_by_an_interrupt(shell: Shell) -> None:
    with Client(shell.target) as client:
        client.step("interrupted", model="g2p-en", source="gate")
        command = [*COMMAND, "--target", shell.target, "watch", "interrupted"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("0\twatching")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in errors
        client.step("interrupted", close=True)


def test_step_feeds_numbers_to_a_model_that_reads_them(shell: Shell) -> None:
    opening = ("--model", "co2-forecast", "--source", "370 371 372 373")
    done = shell.run("step", "numbers", "372.1 373.5", *opening, "--close")
    assert 300 < float(done.stdout) < 450
    assert b"closed at position 2" in done.stderr
    assert b"reads numbers" in shell.run("step", "numbers", "x", *opening, code=2).stderr
    shell.run("step", "numbers", code=4)  # the refused command has left no session
    assert b"--position" in shell.run("step", "numbers", "--position", "0", code=2).stderr


class Refusing:
    """A client whose server opens a session and then refuses every request."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def model(self, name: str, version: int) -> Any:
        self.asked.append("model")
        return SimpleNamespace(model=name, version=1, feature_size=2, constants=(), has_encoder=False)

    def step(self, session_id: str, **options: Any) -> SessionStep:
        self.asked.append("close" if options.get("close") else "feed" if "features" in options else "open")
        if len(self.asked) > 2:
            raise UnavailableError(f"refused to {self.asked[-1]}")
        return SessionStep(0, session_id=session_id, model="numbers", version=1)


def test_a_refused_feed_is_reported_also_if_its_session_cannot_be_closed(capsys: pytest.CaptureFixture[str]) -> None:
    """The model is described only once."""
    client = Refusing()
    context = cast(Any, SimpleNamespace(obj=SimpleNamespace(client=lambda: client)))
    with pytest.raises(UnavailableError, match="refused to feed"):
        step(context, "mine", "1,2", model="numbers")
    assert client.asked == ["model", "open", "feed", "close"]
    assert "session mine is still open: refused to close" in capsys.readouterr().err
