"""Sequence-to-sequence models from ONNX files of others, over a bare loop of ONNX Runtime over the same files.

The models are transducers and a translator with random weights. One transducer is small: its frames cost less than a
message. Two have the size of a speech recogniser, with 9 and 24 million weights. Each of 64 streams feeds one frame per
message, and a penalty on the blank makes about every fifth frame emit a token. Each of the translator's sessions has
its own source and generates tokens repeatedly.
"""

from __future__ import annotations

from benchmarks.measure import Report, Sample, alternate, seconds_a_call
from benchmarks.processes import Running, service
from benchmarks.setup import Setup, notes
from benchmarks.traffic import Load
from benchmarks.transducers import BareLoop, Recogniser
from benchmarks.translators import SOURCE_LENGTH, BareTranslations, Translator

STREAMS = 64
FRAME_S = 0.04
"""Duration of a frame."""
TOKENS = 32
"""Tokens of one generation."""
_BOUND = 0.6
RECOGNISERS = (
    (Recogniser("spotter", 80, 64, 2, 64, 40, 30.0, -1.45), None),
    (Recogniser("recogniser", 320, 512, 4, 256, 500, 30.0, -3.85), None),
    (Recogniser("large_recogniser", 320, 768, 5, 512, 500, 400.0, -1.33), _BOUND),
)
"""The transducers, each with what its ratio must be at least; None: no requirement."""
TRANSLATOR = Translator("translator", 256, 4000)


def seq2seq(setup: Setup) -> Report:
    """Tokens a second of 64 translations, and real-time streams per core of transducers, over bare loops at batch
    64."""
    report = Report("seq2seq", f"{STREAMS} sessions of models in several files, over a bare loop", notes=notes())
    TRANSLATOR.export()
    with service(TRANSLATOR.repository, setup.wire, None) as carousel:
        load = setup.load(
            model=TRANSLATOR.name,
            streams=STREAMS,
            vocabulary=TRANSLATOR.tokens,
            source=SOURCE_LENGTH,
            tokens=TOKENS,
        )
        report.rows.append(
            alternate(
                TRANSLATOR.name,
                lambda: setup.sample("translations", carousel, load),
                lambda: _bare_tokens(setup),
                unit="tokens/s",
                bound=_BOUND,
                rounds=setup.rounds,
            )
        )
    add_transducers(setup, report)
    return report


def add_transducers(setup: Setup, report: Report) -> None:
    """Adds the rows of the transducers to the report."""
    for recogniser, _ in RECOGNISERS:
        recogniser.export()
    with service(RECOGNISERS[0][0].repository, setup.wire, None) as carousel:
        for recogniser, bound in RECOGNISERS:
            load = setup.load(model=recogniser.name, streams=STREAMS, features=recogniser.features)
            report.rows.append(
                alternate(
                    recogniser.name,
                    lambda load=load: _served(setup, carousel, load),  # type: ignore[misc]
                    lambda recogniser=recogniser: _bare(recogniser, setup),  # type: ignore[misc]
                    unit="streams a core",
                    bound=bound,
                    rounds=setup.rounds,
                )
            )


def _served(setup: Setup, carousel: Running, load: Load) -> Sample:
    """Returns how many real-time streams one core can serve, from the server's CPU time per frame."""
    seen = setup.seen("vector_feeds", carousel, load)
    return Sample(FRAME_S * 1e6 / seen["cpu_us"], seen["cpu_us"])


def _bare(recogniser: Recogniser, setup: Setup) -> Sample:
    """Returns how many real-time streams one core can serve with the bare loop, which has one thread."""
    bare = BareLoop(recogniser, STREAMS)
    bare.step()
    return Sample(FRAME_S * STREAMS / seconds_a_call(bare.step, for_s=min(1.0, setup.seconds)))


def _bare_tokens(setup: Setup) -> Sample:
    bare = BareTranslations(TRANSLATOR, STREAMS)
    bare.step()
    return Sample(STREAMS / seconds_a_call(bare.step, for_s=min(1.0, setup.seconds)))
