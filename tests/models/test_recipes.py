"""The recipes learn something in seconds from little data, can be resumed, and report their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("statsmodels")

import numpy as np
import torch

from models.forecaster import ForecasterConfig
from models.language_model import LanguageModel, LanguageModelConfig
from models.recipes import co2, co2_data, pychar, python_source, stress, stress_data
from models.studies import gradient_flow
from models.tagger import Tagger, TaggerConfig
from models.training import TrainingConfig

SMALL = TrainingConfig(epochs=2, learning_rate=5e-3, warmup_steps=2, average_decay=0.9)


@pytest.fixture(scope="module")
def words() -> list[stress_data.Word]:
    """The words of the validation split. Tests must not change them."""
    return stress_data.load("validation")


def test_python_source_is_whole_files_of_one_split_each() -> None:
    splits = {name: python_source.load(name) for name in ("train", "validation", "test")}
    assert sum(map(len, splits["train"])) > 5_000_000
    assert 0.01 < len(splits["test"]) / len(splits["train"]) < 0.12
    names = {python_source.split_of(f"{letter}/{number}.py") for letter in "abc" for number in range(60)}
    assert names == {"train", "validation", "test"}
    text = "def f(x):\n    return 'é\t'\n"
    ids = python_source.encode(text)
    found = "".join(python_source.CHARACTERS[token] for token in ids)
    assert found == text.replace("é", "<unk>").replace("\t", "<unk>")


def test_each_window_begins_where_the_previous_one_ended() -> None:
    """Each stream reads its text in order, targets are the next characters, and the first window is marked."""
    files = [[2 + (number + at) % 90 for at in range(50)] for number in range(9)]
    batches = list(pychar.make_batches(files, 4, 16, seed=1))
    assert [is_first for _, _, is_first in batches] == [True, *([False] * (len(batches) - 1))]
    rows = torch.cat([inputs for inputs, _, _ in batches], dim=1)
    expected = torch.cat([following for _, following, _ in batches], dim=1)
    assert torch.equal(rows[:, 1:], expected[:, :-1])
    again = list(pychar.make_batches(files, 4, 16, seed=1))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batches, again, strict=True))


def test_bits_per_character_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(len(python_source.CHARACTERS), 8, 12)).eval()
    files = [python_source.encode("def f():\n    pass\n" * 3), python_source.encode("x = 1\n")]
    whole = pychar.bits_per_character(model, files)
    monkeypatch.setattr(pychar, "_CHUNK", 7)
    assert pychar.bits_per_character(model, files) == pytest.approx(whole, rel=1e-5)
    assert 5 < whole < 8, "an untrained model knows no more than 98 characters"


def test_pychar_trains_and_beats_guessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on a few files, and is compared with an n-gram model of the same files."""
    texts = ["def read(self):\n    return self.value\n" * 20] * 12
    monkeypatch.setattr(python_source, "load", lambda split: texts if split == "train" else texts[:1])
    config = LanguageModelConfig(len(python_source.CHARACTERS), 8, 24)
    pychar.train(tmp_path, SMALL, config, batch_size=4, window=16)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["bits_per_character"] < 5
    assert 0 < found["baseline_bits_per_character"] < 1
    assert pychar.load_model(tmp_path / "best.safetensors").config == config
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_stress_tags_come_four_phonemes_late_with_their_words(words: list[stress_data.Word]) -> None:
    tokens, tags = stress_data.stream(words[:50])
    assert len(tokens) == len(tags)
    names = stress_data.vocabulary()
    vowels = [names[token] for token, tag in zip(tokens, tags[stress_data.DELAY :], strict=False) if tag]
    assert vowels
    assert {name[0] for name in vowels} <= set("AEIOU")
    assert all(tag == stress_data.UNSTRESSED_ID for tag in tags[: stress_data.DELAY])


def test_a_tagger_is_judged_word_by_word(words: list[stress_data.Word]) -> None:
    """Correct tags of a stream of words score 1, and a wrong vowel makes its word wrong."""
    some = [word for word in words if sum(tag > 0 for tag in word.tags) == 2][:20]
    truth = [word.tags for word in some]
    assert stress.accuracy(truth, some) == (1.0, 1.0)
    flipped = [tuple(1 if tag == 2 else tag for tag in truth[0]) if 2 in truth[0] else (0,) * len(truth[0]), *truth[1:]]
    vowels, whole = stress.accuracy(flipped, some)
    assert whole == pytest.approx(19 / 20)
    assert vowels < 1
    model = Tagger(TaggerConfig(len(stress_data.vocabulary()), 4, 8, 12)).eval()
    assert [len(tags) for tags in stress.tags_of(model, some)] == [len(word.tags) for word in some]


def test_the_window_baseline_knows_what_it_has_seen(words: list[stress_data.Word]) -> None:
    seen = words[:400]
    windows = stress_data.Windows(seen)
    right = sum(windows.tag(word) == word.tags for word in seen) / len(seen)
    assert right > 0.9, "whole words are within its reach"


def test_stress_trains_and_writes_its_evaluation(
    words: list[stress_data.Word], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress_data, "load", lambda split: words[:240])
    stress.train(tmp_path, SMALL, TaggerConfig(len(stress_data.vocabulary()), 4, 8, 12), batch_size=4)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert 0 <= found["word_accuracy"] <= 1
    assert found["baseline_word_accuracy"] > 0.9
    assert stress.load_model(tmp_path / "best.safetensors").config.hidden_size == 12


def test_the_series_is_whole_and_rises_with_the_seasons() -> None:
    series = co2_data.load()
    assert np.isfinite(series).all()
    assert 310 < series.min() < 320
    assert 370 < series.max() < 375
    history = series[np.newaxis, :60]
    naive = co2_data.seasonal_naive(history, 24)
    assert naive[0, :12].tolist() == naive[0, 12:].tolist() == series[48:60].tolist()
    drift = co2_data.seasonal_naive_with_drift(history, 24)
    gained = series[59] - series[47]
    np.testing.assert_allclose(drift[0, 12:], series[48:60] + 2 * gained)


def test_no_window_of_training_sees_a_month_of_the_test() -> None:
    series = np.arange(200, dtype=np.float64)
    history, following = co2.windows(series, co2.HISTORY, 150)
    assert following.max() == 149
    assert history[0, 0] == 0
    test_history, test_following = co2.windows(series, 150, 200)
    assert test_following.min() == 150
    assert (test_history[:, -1] + 1 == test_following[:, 0]).all()


def test_co2_trains_and_writes_its_evaluation(tmp_path: Path) -> None:
    co2.train(tmp_path, SMALL, ForecasterConfig(hidden_size=8, scale=2.0), batch_size=32)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert 0 < found["mean_absolute_error"] < 20
    assert found["seasonal_naive_with_drift"] < found["seasonal_naive"]
    assert co2.load_model(tmp_path / "best.safetensors").config.scale == 2.0


def test_the_carousel_keeps_the_gradient_and_the_vanilla_network_loses_it() -> None:
    """After 60 steps the gradients differ by more than ten orders of magnitude."""
    subjects = {subject.name: subject for subject in gradient_flow.FLOW}
    left = {
        name: gradient_flow.gradient_norms(subjects[name], num_steps=61, num_rows=4, seed=0)[-1].item()
        for name in ("vanilla RNN", "LSTM, forget bias 3", "LSTM of 1997", "GRU, update bias 3")
    }
    assert left["vanilla RNN"] < 1e-12
    assert left["LSTM, forget bias 3"] > 1e-2
    assert left["LSTM of 1997"] > 1e-2
    assert left["GRU, update bias 3"] > 1e-4


def test_the_lstm_learns_to_recall_and_the_vanilla_network_does_not() -> None:
    subjects = {subject.name: subject for subject in gradient_flow.RECALL}
    last = {
        name: gradient_flow.learn_recall(subjects[name], lag=40, num_updates=100, batch_size=64, seed=0)[-1]
        for name in ("vanilla RNN", "LSTM, forget bias 3")
    }
    assert last["LSTM, forget bias 3"] > 0.9
    assert last["vanilla RNN"] < 3 * gradient_flow.CHANCE


def test_the_study_draws_its_pictures(tmp_path: Path) -> None:
    gradient_flow.draw_flow({"a": [1.0, 0.5, 0.0]}, tmp_path / "flow.png")
    gradient_flow.draw_recall({"a": [0.1, 1.0]}, 10, 5, tmp_path / "recall.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("flow.png", "recall.png"))
