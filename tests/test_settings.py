"""Every setting has a flag, a variable and a help text; a value outside its range is refused with the setting's
name."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import CliApp

import carousel
from service.__main__ import main
from service.commands import COMMANDS
from service.repository.bundle import load_bundle
from service.repository.runtime import RuntimeOptions, Runtimes
from service.settings import Settings
from service.variables import unknown_variables
from tests.bundles import write_language_model
from tests.certificates import Authority

FIELDS = Settings.model_fields
FLAGS = {name: "--" + name.replace("_", "-") for name in FIELDS}
OF_THEIR_OWN = (
    "provider",
    "allowed_origins",
    "page_hosts",
    "model_runtimes",
    "redis_url",
    "snapshot_key_file",
    "storage_key_file",
    "health_port",
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
    "tokens_file",
    "trace_ratio",
)
"""Settings that have their own tests below."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the tests independent of the shell's variables and of the machine."""
    for name in os.environ:
        if name.upper().startswith("CAROUSEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("service.check.in_use", lambda settings: ())  # ignores other servers on this machine


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder without bundles. `--check` finishes quickly with it."""
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Returns the exit code of `python -m service ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["service", *arguments])
    with pytest.raises(SystemExit) as end:
        sys.exit(main())
    assert isinstance(end.value.code, int)
    return end.value.code


def other_value(name: str, field: FieldInfo) -> str:
    """Returns an allowed value that is not the default."""
    default = field.default
    if isinstance(default, bool):
        return str(not default).lower()
    if get_origin(field.annotation) is Literal:
        return str(next(choice for choice in get_args(field.annotation) if choice != default))
    if isinstance(default, int | float):
        return str(default + 1)
    return f"other-{name}"


def test_the_defaults_need_no_variable_and_no_flag() -> None:
    settings = CliApp.run(Settings, cli_args=[])
    assert settings == Settings.model_construct()
    assert settings.host == "127.0.0.1", "who wants to be reached from elsewhere must say so"


def test_origins_are_given_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROUSEL_ALLOWED_ORIGINS", '["https://a.example"]')
    assert CliApp.run(Settings, cli_args=[]).allowed_origins == ("https://a.example",)
    flag = ["--allowed-origins", '["https://b.example", "https://c.example"]']
    assert CliApp.run(Settings, cli_args=flag).allowed_origins == ("https://b.example", "https://c.example")


def test_names_of_the_page_are_given_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliApp.run(Settings, cli_args=[]).page_hosts == ()
    monkeypatch.setenv("CAROUSEL_PAGE_HOSTS", '["a.example"]')
    assert CliApp.run(Settings, cli_args=[]).page_hosts == ("a.example",)
    flag = ["--page-hosts", '["b.example.", "C.example", "[0:0::2]", "10.0.0.5"]']
    assert CliApp.run(Settings, cli_args=flag).page_hosts == ("b.example", "c.example", "::2", "10.0.0.5")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            ("page_hosts", value)
            for value in ("", "[::zz]", "a:50051", "http://a", "a/", "*", "a b", "[a]", "fe80::1%a")
        ),
        *(
            ("allowed_origins", value)
            for value in ("", "*", "app.example", "https://app.example/", "https://App.example", "https://*.example")
        ),
        *(("allowed_origins", value) for value in ("https://app.example:443", "http://app.example:80", "https://a b")),
    ],
)
def test_invalid_origins_and_hosts_are_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, value: str
) -> None:
    assert run(monkeypatch, "--check", FLAGS[setting], json.dumps([value])) == 2
    assert f"{setting}.0 = {value!r}: expected a " in capsys.readouterr().err


@pytest.mark.parametrize("value", ["http://localhost:8080", "http://app.example:443", "https://[::1]:8443", "null"])
def test_valid_origins_are_accepted(value: str) -> None:
    assert Settings.model_validate({"allowed_origins": [value]}).allowed_origins == (value,)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if "Path" in str(field.annotation)])
def test_an_empty_path_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It would be the current folder. A script gives it with a variable that is not set."""
    with pytest.raises(ValidationError, match="it is empty: give a path, or leave the setting out"):
        CliApp.run(Settings, cli_args=[f"{FLAGS[name]}="])
    monkeypatch.setenv(f"CAROUSEL_{name.upper()}", "")
    with pytest.raises(ValidationError, match="it is empty"):
        CliApp.run(Settings, cli_args=[])


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in OF_THEIR_OWN])
def test_every_setting_can_be_given_by_its_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = other_value(name, FIELDS[name])
    monkeypatch.setenv(f"CAROUSEL_{name.upper()}", value)
    settings = CliApp.run(Settings, cli_args=[])
    found = getattr(settings, name)
    assert found != FIELDS[name].default
    assert str(found).lower() == value
    assert {other for other in FIELDS if getattr(settings, other) != FIELDS[other].default} == {name}


@pytest.mark.parametrize(
    "name",
    [name for name, field in FIELDS.items() if not isinstance(field.default, bool) and name not in OF_THEIR_OWN],
)
def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    field = FIELDS[name]
    monkeypatch.setenv(f"CAROUSEL_{name.upper()}", other_value(name, field))
    settings = CliApp.run(Settings, cli_args=[FLAGS[name], str(field.default)])
    assert getattr(settings, name) == field.default


def test_a_switch_may_be_turned_off_by_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROUSEL_CHECK", "1")
    assert CliApp.run(Settings, cli_args=[]).check
    assert CliApp.run(Settings, cli_args=["--check"]).check
    assert not CliApp.run(Settings, cli_args=["--no-check"]).check


def test_the_server_tells_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"Carousel {carousel.__version__}\n"


def test_help_lists_every_command_and_each_command_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^ *{command} .*[a-z]$", shown, re.MULTILINE), command
    for command in set(COMMANDS) - {"--version"}:
        for flag in ("--help", "-h"):
            assert run(monkeypatch, command, flag) == 0
            output = capsys.readouterr()
            assert output.out.startswith(f"usage: python -m service {command} ")
            assert (output.out.count("\n") > 3, output.err) == (True, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "unknown command 'frob': expected health, token NAME or --version"),
        (["Health", "--help"], "unknown command 'Health': expected health, "),
        (["--version", "--foo"], "usage: python -m service --version: unexpected argument '--foo'"),
        (["token"], "usage: python -m service token NAME\n"),
        (["token", "--name"], "usage: python -m service token NAME\n"),
        (["health", "--port", "-1"], "port = '-1': Input should be greater than or equal to 0\n"),
    ],
)
def test_a_command_that_is_wrong_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.out == ""


def test_help_lists_every_setting_with_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert shown.startswith("usage: python -m service ")
    for name, field in FIELDS.items():
        assert field.description, f"{name} has no docstring"
        assert f" {FLAGS[name]}" in shown
        assert re.sub(r"\s+", " ", field.description) in shown


def test_check_reports_certificates_and_principals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_language_model(tmp_path / "models")
    authority = Authority()
    issued = authority.issue_server()
    files = {"cert": issued.certificate, "key": issued.key, "client-ca": authority.certificate}
    arguments = ["--check", "--models", str(tmp_path / "models"), "--tokens-file", str(tmp_path / "tokens")]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        arguments += [f"--tls-{name}-file", str(tmp_path / name)]
    (tmp_path / "tokens").write_text('[principals.x]\ncertificate_names = ["CN=x"]')
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == f"ok      {tmp_path}/cert\nok      {tmp_path}/tokens\nok      tiny-lm/1\n"
    (tmp_path / "tokens").write_text('[principals.x]\ncertificate_names = ["*.x"]')
    assert run(monkeypatch, *arguments) == 1
    assert "FAILED  tokens_file = " in capsys.readouterr().out
    (tmp_path / "tokens").write_text('[principals.x]\ncertificate_names = ["CN=x"]')
    (tmp_path / "client-ca").write_text("nonsense")
    assert run(monkeypatch, *arguments) == 1
    assert f"FAILED  tls_client_ca_file = {tmp_path}/client-ca is not PEM\n" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--nonsense", "1"], ["surplus"], ["--port"], ["--por", "1"]])
def test_a_flag_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path, arguments: list[str]
) -> None:
    """A shortened flag and a flag without its value are refused too."""
    assert run(monkeypatch, "--check", "--models", str(empty), *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_variable_that_is_not_a_setting_is_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    """Kubernetes sets such variables for a service named `carousel`."""
    monkeypatch.setenv("CAROUSEL_SERVICE_HOST", "10.0.0.1")
    assert run(monkeypatch, "--check", "--models", str(empty)) == 0
    assert capsys.readouterr().out == f"WARNING {empty}: no version would be served\n"


def test_check_reports_a_variable_that_is_not_a_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    monkeypatch.setenv("CAROUSEL_MAX_SESSION", "5")
    run(monkeypatch, "--check", "--models", str(empty))
    message = "WARNING CAROUSEL_MAX_SESSION is not a setting: did you mean CAROUSEL_MAX_SESSIONS?\n"
    assert capsys.readouterr().out.startswith(message)


def test_a_misspelled_variable_is_reported() -> None:
    environ = {
        "CAROUSEL_MAX_SESSION": "5",
        "CAROUSEL_MAX_SESSIONS": "5",
        "carousel_port": "1",
        "CAROUSEL_ZZZZZZ": "1",
        "CAROUSEL_SERVICE_PORT": "50051",
        "CAROUSEL_PORT_50051_TCP_ADDR": "10.0.0.1",
        "PATH": "/bin",
    }
    assert unknown_variables(environ) == [("CAROUSEL_MAX_SESSION", "CAROUSEL_MAX_SESSIONS"), ("CAROUSEL_ZZZZZZ", None)]


def test_a_models_runtime_overrides_only_the_given_options() -> None:
    given = json.dumps({"g2p-en": {"allow_spinning": True}, "lm": {"num_threads": 4}})
    settings = CliApp.run(Settings, cli_args=["--num-threads", "2", "--model-runtimes", given])
    assert settings.runtimes.of("other") == RuntimeOptions(num_threads=2)
    assert settings.runtimes.of("g2p-en") == RuntimeOptions(num_threads=2, allow_spinning=True)
    assert settings.runtimes.of("lm") == RuntimeOptions(num_threads=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--provider", "cuda"], "provider = 'cuda': cuda is not available: this onnxruntime has "),
        (["--provider", "tpu"], "provider = 'tpu': Input should be 'cpu' or 'cuda'"),
        (
            ["--model-runtimes", '{"g2p-en": {"provider": "cuda"}}'],
            "model_runtimes.g2p-en.provider = 'cuda': cuda is not available",
        ),
        (
            ["--model-runtimes", '{"g2p-en": {"num_threads": 0}}'],
            "model_runtimes.g2p-en.num_threads = 0: Input should be greater than or equal to 1",
        ),
        (
            ["--model-runtimes", '{"g2p-en": {"threads": 2}}'],
            "model_runtimes.g2p-en.threads = 2: Extra inputs are not permitted",
        ),
    ],
)
def test_an_invalid_runtime_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert run(monkeypatch, "--check", *arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_runtime_for_an_unknown_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_language_model(tmp_path)
    given = '{"tiny": {"num_threads": 2}}'
    assert run(monkeypatch, "--check", "--models", str(tmp_path), "--model-runtimes", given) == 1
    assert capsys.readouterr().out == f"FAILED  model_runtimes: 'tiny' is not in {tmp_path} (available: tiny-lm)\n"


def test_a_graph_is_loaded_as_its_models_runtime_says(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path)
    runtimes = Runtimes(by_model={"tiny-lm": RuntimeOptions(num_threads=2, allow_spinning=True)})
    options = load_bundle(folder, runtimes.of("tiny-lm")).step.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    usual = load_bundle(folder).step.get_session_options()
    assert usual.intra_op_num_threads == 1
    assert usual.get_session_config_entry("session.intra_op.allow_spinning") == "0"


LONGEST = "Input should be less than or equal to 1000000000"
OUT_OF_RANGE = [
    ("port", "65536", "Input should be less than or equal to 65535"),
    ("port", "-1", "Input should be greater than or equal to 0"),
    ("port", "x", "Input should be a valid integer, unable to parse string as an integer"),
    ("metrics_port", "65536", "Input should be less than or equal to 65535"),
    ("health_port", "65536", "Input should be less than or equal to 65535"),
    ("max_metadata_bytes", "1023", "Input should be greater than or equal to 1024"),
    ("max_metadata_bytes", "1048577", "Input should be less than or equal to 1048576"),
    ("trace_ratio", "-0.1", "Input should be greater than or equal to 0"),
    ("trace_ratio", "1.1", "Input should be less than or equal to 1"),
    ("log_format", "xml", "Input should be 'text' or 'json'"),
    ("log_level", "loud", "Input should be 'debug', 'info', 'warning' or 'error'"),
    ("max_calls", "0", "Input should be greater than or equal to 1"),
    ("check_memory_mib", "255", "Input should be greater than or equal to 256"),
    ("check_time_s", "0", "Input should be greater than 0"),
    ("max_sessions", "0", "Input should be greater than or equal to 1"),
    ("max_sessions", "10000001", "Input should be less than or equal to 10000000"),
    ("idle_timeout_s", "0", "Input should be greater than 0"),
    ("max_age_s", "-1", "Input should be greater than or equal to 0"),
    ("inline_s", "-1", "Input should be greater than or equal to 0"),
    ("max_in_flight", "0", "Input should be greater than or equal to 1"),
    ("max_forks", "0", "Input should be greater than or equal to 1"),
    ("max_forks", "1025", "Input should be less than or equal to 1024"),
    ("num_forks", "0", "Input should be greater than or equal to 1"),
    ("max_feed_tokens", "0", "Input should be greater than or equal to 1"),
    ("max_generate_tokens", "0", "Input should be greater than or equal to 1"),
    ("generation_window", "0", "Input should be greater than or equal to 1"),
    ("max_message_bytes", "1023", "Input should be greater than or equal to 1024"),
    ("max_message_bytes", "2147483648", "Input should be less than or equal to 2147483647"),
    ("num_tombstones", "-1", "Input should be greater than or equal to 0"),
    ("max_waiting", "0", "Input should be greater than or equal to 1"),
    ("max_batch_rows", "0", "Input should be greater than or equal to 1"),
    ("max_batch_rows", "1025", "Input should be less than or equal to 1024"),
    ("max_batch_tokens", "-1", "Input should be greater than or equal to 0"),
    ("max_chunk_tokens", "0", "Input should be greater than or equal to 1"),
    ("num_threads", "1025", "Input should be less than or equal to 1024"),
    ("num_threads", "0", "Input should be greater than or equal to 1"),
    ("checkpoint_interval_s", "0", "Input should be greater than 0"),
    ("checkpoint_tokens", "0", "Input should be greater than or equal to 1"),
    ("lease_s", "0.2", "Input should be greater than or equal to 0.3"),
    ("hold_s", "0", "Input should be greater than 0"),
    ("max_hold_s", "0", "Input should be greater than 0"),
    ("keep_s", "0", "Input should be greater than 0"),
    ("max_keep_s", "0", "Input should be greater than 0"),
    ("replay_tokens", "0", "Input should be greater than or equal to 1"),
    ("max_marks", "-1", "Input should be greater than or equal to 0"),
    ("max_slots", "-1", "Input should be greater than or equal to 0"),
    ("watch_models_s", "-1", "Input should be greater than or equal to 0"),
    ("store", "disk", "Input should be 'lmdb', 'redis' or 'memory'"),
    ("max_durability", "most", "Input should be 'none', 'checkpoint' or 'strict'"),
    ("shutdown_grace_s", "-0.5", "Input should be greater than or equal to 0"),
    ("max_slots", "10000001", "Input should be less than or equal to 10000000"),
    ("num_forks", "10000001", "Input should be less than or equal to 10000000"),
    ("hold_s", "1000000001", LONGEST),
    ("hold_s", "nan", LONGEST),
    *((name, "inf", LONGEST) for name in FIELDS if name.endswith("_s")),
]


@pytest.mark.parametrize("wrong", OUT_OF_RANGE, ids=lambda wrong: f"{wrong[0]}={wrong[1]}")
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_value_out_of_its_range_ends_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by: str, wrong: tuple[str, str, str]
) -> None:
    """One line gives the setting, its value and what was expected; the exit code is 2."""
    name, value, message = wrong
    arguments = ["--check"]
    if by == "flag":
        arguments.append(f"{FLAGS[name]}={value}")
    else:
        monkeypatch.setenv(f"CAROUSEL_{name.upper()}", value)
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{name} = {value!r}: {message}\n"
    assert captured.out == ""


def test_every_number_has_a_range_that_is_tested() -> None:
    numbers = {name for name, field in FIELDS.items() if field.annotation in (int, float)}
    assert numbers == {name for name, *_ in OUT_OF_RANGE} - {
        "log_format",
        "log_level",
        "store",
        "max_durability",
        "health_port",
    }


def test_a_fraction_of_the_calls_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROUSEL_TRACE_RATIO", "0.25")
    assert CliApp.run(Settings, cli_args=[]).trace_ratio == 0.25
    assert CliApp.run(Settings, cli_args=["--trace-ratio", "0"]).trace_ratio == 0


def test_files_of_certificates_and_tokens_can_be_given(tmp_path: Path) -> None:
    settings = CliApp.run(
        Settings,
        cli_args=[
            "--tls-cert-file=a",
            "--tls-key-file=b",
            "--tls-client-ca-file=c",
            "--tokens-file=d",
            "--health-port=1",
        ],
    )
    files = (settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, settings.tokens_file)
    assert files == tuple(map(Path, "abcd"))
    assert settings.health_port == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert-file=a"], "tls_cert_file and tls_key_file must be set together: set both, or neither"),
        (["--tls-key-file=a"], "tls_cert_file and tls_key_file must be set together: set both, or neither"),
        (["--tls-client-ca-file=a"], "tls_client_ca_file needs tls_cert_file and tls_key_file"),
    ],
)
def test_incomplete_tls_settings_fail_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(monkeypatch, "--check", *arguments) == 2
    assert message in capsys.readouterr().err


def test_conflicting_settings_are_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    secret = "--redis-url=redis://user:hush@cache:6379/1"
    assert run(monkeypatch, "--check", "--num-forks=4", "--max-forks=5", secret, f"--models={empty}") == 2
    assert capsys.readouterr().err == (
        "num_forks = 4 must be at least max_forks = 5, the most that one search or score may need: increase"
        " num_forks, or decrease max_forks\n"
    )


def test_limits_of_the_engine_are_not_exceeded() -> None:
    settings = CliApp.run(Settings, cli_args=["--num-forks=4", "--max-forks=4", "--max-batch-tokens=8"])
    assert settings.engine_limits.num_forks == settings.session_limits.max_forks == 4
    assert settings.engine_limits.max_batch_tokens == settings.engine_limits.max_chunk_tokens == 8


def test_secret_values_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAROUSEL_REDIS_URL", "redis://user:hush@cache:6379/1")
    settings = CliApp.run(Settings, cli_args=["--snapshot-key-file", str(tmp_path / "key")])
    assert settings.snapshot_key_file == tmp_path / "key"
    assert CliApp.run(Settings, cli_args=["--storage-key-file=keys"]).storage_key_file == Path("keys")
    assert settings.redis_url.get_secret_value() == "redis://user:hush@cache:6379/1"
    assert "hush" not in repr(settings)
    assert "hush" not in f"{settings.redis_url} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tls-cert-file=missing"],
        ["--port=-1"],
        ["--redis-url=redis://:hush#hush@cache:6379"],
        ["--redis-url=hush"],
        ["--redis-ur=redis://:hush@cache"],
        ["--redis-url", "redis://cache", "redis://:hush@cache"],
        ["--otlp-endpoint=http://user:hush@collector:4317"],
        ['--allowed-origins=["http://user:hush@app.example"]'],
    ],
)
def test_refusals_contain_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv("CAROUSEL_REDIS_URL", "redis://user:hush@cache:6379/1")
    assert run(monkeypatch, "--check", *arguments) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1, "the reason, once"
    assert "hush" not in output.err + output.out


def test_an_exception_of_the_settings_has_no_value() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(redis_url="redis://user:hush@cache", tls_cert_file=Path("hush"))
    assert "hush" not in f"{refused.value} {refused.value!r}"


def test_help_shows_every_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """This includes the default of a setting whose value is secret."""
    assert run(monkeypatch, "--help") == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "Redis or Valkey for `store=redis`. (default: redis://127.0.0.1:6379/0)" in shown
    assert "****" not in shown


def test_several_values_out_of_range_are_all_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--check", "--port=-1", "--max-sessions=0") == 2
    named = [line.partition(" = ")[0] for line in capsys.readouterr().err.splitlines()]
    assert named == ["port", "max_sessions"]


def test_checking_a_folder_without_bundles_warns_as_a_start_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    assert run(monkeypatch, "--check", "--models", str(empty)) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"WARNING {empty}: no version would be served\n", "")


def test_checking_a_folder_that_is_missing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    missing = empty / "missing"
    assert run(monkeypatch, "--check", "--models", str(missing)) == 1
    captured = capsys.readouterr()
    message = f"FAILED  models = {missing} is not a folder: name one with --models, or serve --example\n"
    assert (captured.out, captured.err) == (message, "")


def test_checking_names_each_bundle_and_what_is_wrong_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    """Folders that are not versions are ignored."""
    for folder in ("b/2", "b/1", "a/1", "a/notes", ".git/1"):
        (empty / folder).mkdir(parents=True)
    assert run(monkeypatch, "--check", "--models", str(empty)) == 1
    reason = "manifest.json cannot be read: No such file or directory"
    failed = f"FAILED  a/1: {reason}\nFAILED  b/1: {reason}\nFAILED  b/2: {reason}\n"
    assert capsys.readouterr().out == f"{failed}WARNING {empty}: no version would be served\n"


def test_checking_bundles_that_can_be_served_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    for version in (2, 1):
        write_language_model(empty, version=version)
    assert run(monkeypatch, "--check", "--models", str(empty)) == 0
    assert capsys.readouterr().out == "ok      tiny-lm/1\nok      tiny-lm/2\n"


def test_checking_fails_when_one_bundle_of_many_cannot_be_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    write_language_model(empty)
    (write_language_model(empty, version=2) / "target.txt").unlink()
    assert run(monkeypatch, "--check", "--models", str(empty)) == 1
    reason = "target.txt cannot be read: No such file or directory"
    assert capsys.readouterr().out == f"ok      tiny-lm/1\nFAILED  tiny-lm/2: {reason}\n"


def test_settings_set_the_limits_of_engines_and_sessions() -> None:
    settings = CliApp.run(
        Settings,
        cli_args=["--max-sessions=3", "--max-batch-rows=5", "--max-chunk-tokens=7", "--max-message-bytes=2048"],
    )
    assert settings.engine_limits.num_slots == settings.session_limits.max_sessions == 3
    assert (settings.engine_limits.max_batch_rows, settings.engine_limits.max_chunk_tokens) == (5, 7)
    assert settings.session_limits.max_answer_bytes == 2048 - 512, "the rest of the response needs room too"


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_examples_and_a_folder_are_not_both_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path, by: str
) -> None:
    monkeypatch.setattr("service.check.attempt", lambda *_: None)
    if by == "flag":
        assert run(monkeypatch, "--check", "--example") == 0
        assert "ok      co2-forecast/1" in capsys.readouterr().out
    else:
        monkeypatch.setenv("CAROUSEL_MODELS", str(empty))
    assert run(monkeypatch, "--check", "--example", *([] if by == "variable" else ["--models", str(empty)])) == 2
    output = capsys.readouterr()
    assert output.err == (
        "--example serves only the models that come with the server: leave out --models"
        f" ({empty}) and CAROUSEL_MODELS, or --example and CAROUSEL_EXAMPLE\n"
    )
    assert output.out == ""
    assert run(monkeypatch, "--check", "--no-example", "--models", str(empty)) == 0
