"""A translator whose decoder takes one token and reads the previous attention vector is served with the results of a
loop over its graphs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from carousel import AsyncClient, Client
from examples.local_service import LocalService
from export.torch_model import TorchModel, write_module
from export.vocabulary import Vocabulary
from service.repository.manifest import SpecialTokens
from tests.reference import ReferenceSession
from tests.services import local_service

SIZE, SOURCES, TARGETS = 12, 15, 11
Pair = tuple[Tensor, Tensor]


class Encoder(nn.Module):
    """Packs its source and has no mask. The exporter makes the mask from the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SOURCES, 7)
        self.rnn = nn.LSTM(7, SIZE, batch_first=True)

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Pair, Tensor]:
        packed = pack_padded_sequence(self.embedding(source), lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, (h, c) = self.rnn(packed)
        memory, _ = pad_packed_sequence(outputs, batch_first=True)
        return memory, (h[0], c[0]), torch.zeros_like(h[0])


class Decoder(nn.Module):
    """Luong's decoder with input feeding: the attention vector is read together with the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TARGETS, 7)
        self.cell = nn.LSTMCell(7 + SIZE, SIZE)
        self.join = nn.Linear(2 * SIZE, SIZE)
        self.last = nn.Linear(SIZE, TARGETS)

    def forward(
        self, token: Tensor, state: Pair, fed: Tensor, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Pair, Tensor, Tensor]:
        h, c = self.cell(torch.cat([self.embedding(token), fed], dim=1), state)
        scores = torch.bmm(memory, h.unsqueeze(2)).squeeze(2).masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=1)
        attended = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
        fed = torch.tanh(self.join(torch.cat([attended, h], dim=1)))
        return self.last(fed), (h, c), fed, weights


def names(count: int) -> Vocabulary:
    return Vocabulary(tuple(f"w{number}" for number in range(count)), "whitespace")


@pytest.fixture(scope="module")
def modules() -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    return Encoder().eval(), Decoder().eval()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, modules: tuple[Encoder, Decoder]) -> Path:
    encoder, decoder = modules
    to = tmp_path_factory.mktemp("repository")
    model = TorchModel(
        decoder,
        {"h": ("batch", SIZE), "c": ("batch", SIZE), "fed": ("batch", SIZE)},
        vocabulary=names(TARGETS),
        special_tokens=SpecialTokens(bos_id=1, eos_id=2),
        encoder=encoder,
        source_vocabulary=names(SOURCES),
        contexts={"memory": ("batch", "source", SIZE), "mask": ("batch", "source")},
        one_step=True,
    )
    write_module(model, to=to, name="translator", description="Translates", evaluation={})
    return to


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[LocalService]:
    with local_service(repository) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def source_of(number: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(number).integers(1, SOURCES, 2 + number % 9)]


def test_the_graphs_return_what_the_modules_return(repository: Path, modules: tuple[Encoder, Decoder]) -> None:
    encoder, decoder = modules
    source = source_of(5)
    session = ReferenceSession(repository / "translator" / "1", source)
    with torch.no_grad():
        memory, state, fed = encoder(torch.tensor([source]), torch.tensor([len(source)]))
        mask = torch.ones(1, len(source), dtype=torch.bool)
        _, state, fed, _ = decoder(torch.tensor([1]), state, fed, memory, mask)
        for token in (4, 9, 3):
            logits, state, fed, _ = decoder(torch.tensor([token]), state, fed, memory, mask)
            np.testing.assert_allclose(session.step(token), logits[0].numpy(), atol=1e-5)


async def test_many_concurrent_translations_have_the_same_bits_as_alone(
    service: LocalService, repository: Path
) -> None:
    """Runs 24 sources of many lengths. Each session is fed in two chunks of different sizes, and then generates."""

    async def run(client: AsyncClient, number: int) -> None:
        reference = ReferenceSession(repository / "translator" / "1", source_of(number))
        fed = [3 + (number + place) % (TARGETS - 3) for place in range(7)]
        cut = 1 + number % 5
        async with client.session("translator", source=source_of(number)) as session:
            await session.feed(fed[:cut])
            step = await session.feed(fed[cut:], logits=True)
            logits = [reference.step(token) for token in fed][-1]
            assert np.array(step.outputs[-1].logits, np.float32).tobytes() == logits.tobytes()
            found = [token.id async for token in session.generate(max_tokens=12)]
        assert [token for token in found if token != 2] == reference.generate(12)

    async with AsyncClient(service.target) as client:
        await asyncio.gather(*(run(client, number) for number in range(24)))


def test_a_fork_continues_as_its_session_would(service: LocalService, repository: Path) -> None:
    with Client(service.target) as client, client.session("translator", source=source_of(3)) as session:
        session.feed([5, 6])
        client.sessions.fork(session.id, "the-other-way")
        session.feed([7])
        reference = ReferenceSession(repository / "translator" / "1", source_of(3))
        for token in (5, 6):
            reference.step(token)
        with client.resume("the-other-way") as fork:
            assert [token.id for token in fork.generate(max_tokens=9) if token.id != 2] == reference.generate(9)
