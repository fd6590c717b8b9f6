"""A neural transducer that reads Morse code: samples of sound in, characters out, as the sound arrives.

    python -m models.recipes.morse train --run runs/morse
    python -m models.recipes.morse evaluate runs/morse/best.safetensors

A killed `train` resumes after its last complete epoch when it is called again with the same `--run`. Training sounds
are generated from the seed during training, short and clean ones first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from models import command_line, training
from models.curves import plot_curves
from models.metrics import edit_distance
from models.recipes import morse_data as data
from models.recipes import morse_envelope
from models.transducer import GreedyDecoder, Transducer, TransducerConfig
from models.transducer_loss import transducer_loss

MODEL = "morse"

MAX_SYMBOLS = 4
"""The most characters emitted after one frame. The fastest keying needs one."""

_TRAINING_SEED, _VALIDATION_SEED, _TEST_SEED = 0, 1, 2
_NO_HINT = -100
_NUM_VALIDATION = 64
_NUM_TEST, _NUM_MINUTES = 100, 20
"""Number of test utterances for each condition, and of test utterances of a minute."""
_TEST_SNR_DB = (np.inf, 20.0, 10.0, 6.0, 3.0, 0.0, -3.0, -6.0)
_TEST_SPEEDS = (10.0, 15.0, 20.0, 25.0, 30.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances, by their seeds. hint_weight: the weight of the hint's loss relative to the transducer's."""

    seeds: list[int]
    difficulty: data.Difficulty
    hint_weight: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """The difficulty over the epochs. num_batches: in an epoch. easy_epochs: until sounds are as hard as the test."""

    num_batches: int = 60
    batch_size: int = 16
    easy_epochs: int = 20

    def batches(self, epoch: int) -> list[Batch]:
        """Returns an epoch's batches. Sounds grow from 2.5 s with little noise to full difficulty; the hint's weight
        falls from 3 to 0.3."""
        done = min(1.0, epoch / self.easy_epochs)
        difficulty = data.Difficulty(
            seconds=2.5 + 7.5 * done, worst_db=20.0 + (data.NOISIEST_DB - 20.0) * done, jitter=0.12 * done
        )
        first = epoch * self.num_batches * self.batch_size
        seeds = range(first, first + self.num_batches * self.batch_size)
        return [
            Batch(list(seeds[at : at + self.batch_size]), difficulty, hint_weight=3.0 - 2.7 * done)
            for at in range(0, len(seeds), self.batch_size)
        ]


class HintedTransducer(nn.Module):
    """A transducer with a hint during training: at each frame, the encoder must also say which part of a character it
    has heard. After 450 batches of short, clean sounds at one speed, the character error rate was 20 % with the hint
    and 93 % without."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.transducer = Transducer(config)
        self.hint = nn.Linear(config.joined_size, len(data.PREFIXES))

    def loss(self, utterances: Sequence[data.Utterance], hint_weight: float) -> Tensor:
        """Returns the transducer's loss in nats per character, plus the weighted hint's loss in nats per frame."""
        targets = [torch.tensor(data.encode(utterance.text)) for utterance in utterances]
        frames = [torch.from_numpy(utterance.frames) for utterance in utterances]
        encoded = self.transducer.encode(pad_sequence(frames, batch_first=True))
        logits = self.transducer.join(encoded, [len(row) for row in frames], targets)
        of_transducer = transducer_loss(logits, targets).sum() / sum(map(len, targets))
        heard = pad_sequence(
            [torch.from_numpy(utterance.heard) for utterance in utterances], batch_first=True, padding_value=_NO_HINT
        )
        of_hint = cross_entropy(self.hint(encoded).flatten(0, 1), heard.flatten(), ignore_index=_NO_HINT)
        return of_transducer + hint_weight * of_hint


def train(run: Path, config: training.TrainingConfig, model_config: TransducerConfig, schedule: Schedule) -> None:
    """Trains into the folder `run`, or resumes the run there, and evaluates the best epoch."""
    torch.manual_seed(config.seed)
    validation = [
        data.draw(np.random.default_rng([_VALIDATION_SEED, index]), "validation", data.Difficulty())
        for index in range(_NUM_VALIDATION)
    ]

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        generators = (np.random.default_rng([_TRAINING_SEED, config.seed, seed]) for seed in batch.seeds)
        utterances = [data.draw(generator, "train", batch.difficulty) for generator in generators]
        return cast(HintedTransducer, module).loss(utterances, batch.hint_weight)

    def validation_error(module: nn.Module) -> float:
        return character_error_rate(spell(cast(HintedTransducer, module).transducer, validation), validation)

    history = training.train(
        HintedTransducer(model_config),
        run=run,
        config=config,
        batches=schedule.batches,
        loss=loss,
        validation_error=validation_error,
        metadata={"model": MODEL, "config": json.dumps(model_config.to_json())},
    )
    plot_curves(
        history,
        run / "curves.png",
        error_name="validation character error rate",
        loss_name="training loss (nats per character)",
    )
    write_evaluation(run / "best.safetensors")


def spell(model: Transducer, utterances: Sequence[data.Utterance]) -> list[str]:
    """Returns the text that the model recognizes in each utterance."""
    frames = [torch.from_numpy(utterance.frames) for utterance in utterances]
    decoder = GreedyDecoder(model, len(frames), max_symbols=MAX_SYMBOLS)
    said = decoder.feed(pad_sequence(frames, batch_first=True), [len(frame) for frame in frames])
    return [data.decode([token for _, token in row]) for row in said]


def character_error_rate(found: Sequence[str], utterances: Sequence[data.Utterance]) -> float:
    """Returns insertions, deletions and substitutions divided by the characters sent. Spaces around a text are
    ignored."""
    wrong = sum(edit_distance(text.strip(), utterance.text) for text, utterance in zip(found, utterances, strict=True))
    return wrong / sum(len(utterance.text) for utterance in utterances)


def load_model(checkpoint: Path) -> Transducer:
    """Returns a checkpoint's trained model, in evaluation mode. Raises ValueError for another recipe's checkpoint."""
    return training.load_trained(
        checkpoint, MODEL, lambda sizes: HintedTransducer(TransducerConfig(**sizes))
    ).transducer


def write_evaluation(checkpoint: Path) -> dict[str, object]:
    """Compares a checkpoint with `morse_envelope` on words and seeds that are not in the training data, by noise and by
    speed. Writes `evaluation.json` beside it."""
    model = load_model(checkpoint)

    def rates(
        count: int, *, seconds: float = 10.0, snr_db: float | None = None, words_per_minute: float | None = None
    ) -> list[float]:
        """Returns the character error rates of the model and of the baseline."""
        test = [
            data.draw(
                np.random.default_rng([_TEST_SEED, index]),
                "test",
                data.Difficulty(seconds=seconds),
                snr_db=snr_db,
                words_per_minute=words_per_minute,
            )
            for index in range(count)
        ]
        by_threshold = [morse_envelope.spell(utterance.samples) for utterance in test]
        return [character_error_rate(found, test) for found in (spell(model, test), by_threshold)]

    rate, base_rate = rates(4 * _NUM_TEST)
    minute_rate, base_minute_rate = rates(_NUM_MINUTES, seconds=60.0)
    return training.write_evaluation(
        checkpoint,
        {
            "task": "characters spelt from Morse code that is keyed by hand at 10 to 30 words a minute, in no noise to "
            f"{data.NOISIEST_DB:.0f} dB: insertions, deletions and substitutions over the characters sent",
            "split": "words of the dictionary by SHA-256 of the word modulo 100: 0-4 validation, 5-14 test, 15-99 "
            "training; call signs, keying and noise by seeds",
            "num_test_utterances": 4 * _NUM_TEST,
            "character_error_rate": rate,
            "minute_character_error_rate": minute_rate,
            "by_snr_db": {f"{snr_db:g}": rates(_NUM_TEST, snr_db=snr_db) for snr_db in _TEST_SNR_DB},
            "by_words_per_minute": {f"{speed:g}": rates(_NUM_TEST, words_per_minute=speed) for speed in _TEST_SPEEDS},
            "baseline": "one threshold on the loudness of one tone, timed in dots, and a table; it hears the whole "
            "recording before it says anything",
            "baseline_character_error_rate": base_rate,
            "baseline_minute_character_error_rate": base_minute_rate,
        },
    )


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.recipes.morse", __doc__.splitlines()[0], train=_train, evaluate=write_evaluation)


def _train(
    *,
    run: command_line.Run,
    epochs: command_line.Epochs = 70,
    hidden: command_line.Hidden = 80,
    batch_size: command_line.BatchSize = 16,
    seed: command_line.Seed = 0,
) -> None:
    """Trains, or resumes a run that was stopped."""
    train(
        run,
        training.TrainingConfig(
            epochs=epochs,
            learning_rate=6e-3,
            warmup_steps=100,
            average_decay=0.99,
            patience=epochs,
            seed=seed,
        ),
        TransducerConfig(len(data.VOCABULARY), hidden_size=hidden),
        Schedule(batch_size=batch_size, easy_epochs=epochs // 3),
    )


if __name__ == "__main__":
    main()
