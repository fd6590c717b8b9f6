"""The flags that all export commands share describe a bundle. Each command puts them into the bundle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.__main__ import main
from export.commands import TorchFlags, parse
from service.repository.manifest import FILE_NAME, Manifest
from tests.conftest import ROOT
from tests.export import foreign, transducer_files, translators

MODULE = """
from torch import nn
from export.torch_model import TorchModel

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, inputs, hidden):
        return self.rnn(inputs, hidden)

def make():
    return TorchModel(Recurrent(), states={"hidden": (1, "batch", 4)}, feature_size=3, value_size=4)
"""
OF_TOKENS = MODULE.replace("feature_size=3", "vocabulary=Vocabulary(('a', 'b'), 'whitespace')").replace(
    "import TorchModel", "import TorchModel\nfrom export.vocabulary import Vocabulary"
)
SAID = ["--name", "said", "--version", "3", "--description", "As it was said", "--max-tokens", "17"]


def onnx_file(folder: Path) -> list[str]:
    return ["onnx", str(foreign.denoiser(folder / "file.onnx"))]


def translator(folder: Path) -> list[str]:
    encoder = translators.export(translators.bridged(), folder / "encoder.onnx")
    decoder = translators.export(translators.bahdanau(), folder / "decoder.onnx")
    return ["onnx", str(decoder), "--encoder", str(encoder)]


def transducer(folder: Path) -> list[str]:
    return ["transducer", *map(str, transducer_files.write(folder)), "--max-symbols", "2"]


def module(folder: Path) -> list[str]:
    (folder / "common_flags_module.py").write_text(MODULE)
    return ["torch", "common_flags_module:make"]


COMMANDS = [onnx_file, translator, transducer, module]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_common_flag_arrives_with_each_command(
    command: Callable[[Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place in ("export.foreign.proving", "export.foreign.translators", "export.proofs.proof"):
        monkeypatch.setattr(f"{place}.check_invariance", lambda *given, **named: None)  # flags do not change proofs
    monkeypatch.chdir(tmp_path)
    arguments = [*command(tmp_path), *SAID, "--to", str(tmp_path / "to")]
    sound = ["--sample-rate", "16000"]
    if command is translator:
        assert main([*arguments, *sound]) == 1
        assert "--sample-rate and --encoder cannot be combined" in capsys.readouterr().err
        sound = []
    (tmp_path / "to" / "said" / "3").mkdir(parents=True)
    assert main([*arguments, *sound]) == 1
    assert "exists: use another version" in capsys.readouterr().err
    if command in (onnx_file, module):  # the fastest commands
        assert main([*arguments, *sound, "--replace", "--max-bytes", "10"]) == 1
        assert "more than the 10 allowed" in capsys.readouterr().err
    assert main([*arguments, *sound, "--replace"]) == 0
    manifest = Manifest.model_validate_json((tmp_path / "to" / "said" / "3" / FILE_NAME).read_bytes())
    assert (manifest.model, manifest.version, manifest.description) == ("said", 3, "As it was said")
    assert (manifest.max_tokens, manifest.sample_rate) == (17, 16000 if sound else None)


def test_all_common_flags_are_passed_on() -> None:
    flags = parse(["torch", "module:make", "--name", "said", "--to", "."])
    assert isinstance(flags, TorchFlags)
    assert set(flags.options(description="")) - {"evaluation"} == set(vars(flags)) - {"factory"}


def test_the_help_of_each_command_imports_no_torch() -> None:
    names = ["g2p", "translate", "pychar", "stress", "co2", "morse", "torch", "onnx", "transducer", "random-lm"]
    code = (
        "import sys; from export.__main__ import main; print([main([name, '-h']) for name in sys.argv[1:]]);"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [f"Usage: python -m export {name} " in done.stdout for name in names] == [True] * len(names)
    assert done.stdout.endswith(f"{[0] * len(names)}\n")


@pytest.mark.parametrize(("command", "has_variants"), [("g2p", True), ("translate", True), ("co2", False)])
def test_a_recipe_has_variants_or_refuses_them(
    command: str, has_variants: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = parse([command, "best.safetensors", "--to", ".", "--variants", "int8"])
    assert (flags == 2) != has_variants
    assert ("No such option: --variants" in capsys.readouterr().err) != has_variants


def file_of_tokens(folder: Path) -> list[str]:
    (folder / "vocabulary").write_text("a\nb\n")
    return [*onnx_file(folder), "--vocabulary", "vocabulary"]


def module_of_tokens(folder: Path) -> list[str]:
    (folder / "module_of_tokens.py").write_text(OF_TOKENS)
    return ["torch", "module_of_tokens:make"]


@pytest.mark.parametrize("command", [file_of_tokens, module_of_tokens])
def test_a_sample_rate_of_a_model_of_tokens_is_refused_before_anything_is_run(
    command: Callable[[Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place in ("export.torch_model.fit", "export.foreign.writing.prove_model"):
        monkeypatch.setattr(place, lambda *given, **named: pytest.fail("it began"))
    monkeypatch.chdir(tmp_path)
    assert main([*command(tmp_path), *SAID, "--to", "to", "--sample-rate", "8000"]) == 1
    refused = "--sample-rate 8000: a model that reads tokens has no sample rate: leave it out"
    assert refused in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--hidden", "--layers", "--vocabulary"])
def test_sizes_of_a_random_model_below_their_least_are_refused(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["random-lm", "--name", "lm", "--to", "unused", flag, "-2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nothing was written: ")
    assert flag in error
    assert "greater than or equal to" in error
    assert "not '-2'" in error
