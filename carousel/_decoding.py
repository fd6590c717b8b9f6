"""Makes the message of decoding options."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Unpack

from carousel._arguments import flag, number
from carousel._tokens import split, uint
from carousel.decoding_options import DecodingOptions
from carousel.v1 import inference_pb2 as pb

_SEED_BITS = 53
"""Bits of a seed that the client draws: JSON and JavaScript represent whole numbers of up to 53 bits exactly."""


def decoding_message(method: str, **options: Unpack[DecodingOptions]) -> pb.Decoding:
    """Makes the message of a generation's options. method: the one that was called, for the error.

    Each of temperature, top_k, top_p and seed selects sampling. Sampling without a seed gets a random seed, so that the
    message draws the same tokens when it is sent again. Raises TypeError for an unknown option.
    """
    for name in options:
        if name not in DecodingOptions.__annotations__:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")
    return _message(**options)


def _message(
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    log_probabilities: bool = False,
    repetition_penalty: float | None = None,
    min_tokens: int | None = None,
    stop: Sequence[str] | Sequence[int] = (),
    beam_size: int | None = None,
    length_penalty: float | None = None,
    num_best: int | None = None,
) -> pb.Decoding:
    message = pb.Decoding(log_probabilities=flag(log_probabilities, "decoding.log_probabilities"))
    if max_tokens is not None:
        message.max_tokens = uint(max_tokens, 32, "decoding.max_tokens", least=1)
    if any(option is not None for option in (temperature, top_k, top_p, seed)):
        drawn = secrets.randbits(_SEED_BITS) if seed is None else seed
        message.sampling.seed = uint(drawn, 64, "decoding.sampling.seed")
        message.sampling.SetInParent()  # marks sampling as present, even if the seed is 0
    if temperature is not None:
        message.sampling.temperature = number(temperature, "decoding.sampling.temperature")
    if top_k is not None:
        message.sampling.top_k = uint(top_k, 32, "decoding.sampling.top_k", least=1)
    if top_p is not None:
        message.sampling.top_p = number(top_p, "decoding.sampling.top_p")
    if repetition_penalty is not None:
        message.repetition_penalty = number(repetition_penalty, "decoding.repetition_penalty")
    if min_tokens is not None:
        message.min_tokens = uint(min_tokens, 32, "decoding.min_tokens")
    if stop:
        names, ids = split(stop, "decoding.stop_tokens", "decoding.stop_token_ids")
        message.stop_tokens.extend(names)
        message.stop_token_ids.extend(ids)
    if any(option is not None for option in (beam_size, length_penalty, num_best)):
        message.beam_search.CopyFrom(_beam_message(beam_size, length_penalty, num_best))
    return message


def _beam_message(beam_size: int | None, length_penalty: float | None, num_best: int | None) -> pb.BeamSearch:
    if beam_size is None:
        raise TypeError("length_penalty and num_best can be set only with beam_size")
    return pb.BeamSearch(
        beam_size=uint(beam_size, 32, "decoding.beam_search.beam_size", least=1),
        length_penalty=None
        if length_penalty is None
        else number(length_penalty, "decoding.beam_search.length_penalty"),
        num_best=None if num_best is None else uint(num_best, 32, "decoding.beam_search.num_best", least=1),
    )
