"""A model's start and end tokens are added to a source when a message is converted, and at no other place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from carousel.v1 import inference_pb2 as pb
from service.api import consumed
from service.api.models import model_info
from service.errors import SequenceTooLongError
from service.repository.bundle import Bundle
from service.repository.manifest import Manifest
from tests import domain

BOS, EOS = 1, 2


def bundle(**added: int) -> Bundle:
    made = domain.bundle(has_encoder=True)
    assert made.manifest.encoder is not None
    manifest = made.manifest.model_dump() | {"format_version": 2}
    manifest["encoder"] |= added
    return replace(made, manifest=Manifest.model_validate(manifest))


FORMS = [
    pb.Sequence(text="ab"),
    pb.Sequence(tokens=pb.TokenNames(names=["a", "b"])),
    pb.Sequence(ids=pb.TokenIds(ids=[domain.SOURCE_NAMES.index("a"), domain.SOURCE_NAMES.index("b")])),
]


@pytest.mark.parametrize("form", FORMS, ids=["text", "tokens", "ids"])
def test_start_and_end_tokens_are_added_to_a_source_of_any_form(form: pb.Sequence) -> None:
    given = list(consumed.source_items(form, domain.bundle(has_encoder=True)))
    assert list(consumed.source_items(form, bundle(eos_id=EOS))) == [*given, EOS]
    assert list(consumed.source_items(form, bundle(bos_id=BOS))) == [BOS, *given]
    assert list(consumed.source_items(form, bundle(bos_id=BOS, eos_id=EOS))) == [BOS, *given, EOS]


def test_token_0_can_be_added() -> None:
    assert list(consumed.source_items(pb.Sequence(text="a"), bundle(eos_id=0)))[1:] == [0]


def test_the_source_limit_leaves_room_for_the_added_tokens() -> None:
    longest = domain.MAX_SOURCE_LENGTH
    made = bundle(bos_id=BOS, eos_id=EOS)
    assert model_info(made).max_source_length == longest - 2
    assert len(consumed.source_items(pb.Sequence(text="a" * (longest - 2)), made)) == longest
    message = rf"^source has {longest - 1} tokens, the limit is {longest - 2} \(max_source_length\)$"
    with pytest.raises(SequenceTooLongError, match=message):
        consumed.source_items(pb.Sequence(text="a" * (longest - 1)), made)


def test_older_servers_can_read_a_manifest_without_added_tokens() -> None:
    written = domain.manifest(has_encoder=True).model_dump(mode="json")
    assert not {"bos_id", "eos_id"} & set(written["encoder"])
