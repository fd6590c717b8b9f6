"""Bad input gets a precise status and a message with the field, its value and what was expected. It changes nothing:
the session continues as if the request had not come."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from carousel.v1 import error_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from tests.end_to_end.wire import g2p, lm, wire
from tests.services import local_service

Code = grpc.StatusCode
STREAM_ENUMS = {
    "open.durability": "DURABILITY_NONE, DURABILITY_CHECKPOINT, DURABILITY_STRICT",
    "open.on_disconnect.action": "DISCONNECT_ACTION_FREE, DISCONNECT_ACTION_HOLD, DISCONNECT_ACTION_KEEP",
    **dict.fromkeys(
        ("open.outputs.kind", "feed.outputs.kind", "step_batch.outputs.kind"),
        "OUTPUT_KIND_NONE, OUTPUT_KIND_NEXT_TOKEN, OUTPUT_KIND_TOP_K, OUTPUT_KIND_LOGITS, OUTPUT_KIND_VALUES, "
        "OUTPUT_KIND_EMITTED",
    ),
}
"""All enum fields of a stream's requests, with the names of their values."""


class Refusal(NamedTuple):
    """A request and its expected error."""

    request: dict[str, Any]
    code: grpc.StatusCode
    reason: str
    message: str
    field: str


def sampling(**values: Any) -> dict[str, Any]:
    return {"generate": pb.Generate(decoding=pb.Decoding(sampling=pb.Sampling(**values)))}


BAD_OPENS = {
    "unknown model": Refusal(
        {"open": pb.Open(model="nope")},
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "open.model = 'nope' does not exist (available: co2-forecast, g2p-en, morse, pychar-en, stress-en, "
        "translate-en-de)",
        "open.model",
    ),
    "unknown version": Refusal(
        {"open": g2p(version=99)},
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "open.version = 99 of model 'g2p-en' does not exist (available: 1)",
        "open.version",
    ),
    "unknown grapheme": Refusal(
        {"open": g2p("ab%c")},
        Code.INVALID_ARGUMENT,
        "UNKNOWN_TOKEN",
        "open.source.text[2] = '%' is not in the source vocabulary of g2p-en",
        "open.source.text[2]",
    ),
    "unknown grapheme by name": Refusal(
        {"open": pb.Open(model="g2p-en", source=pb.Sequence(tokens=pb.TokenNames(names=["a", "ab"])))},
        Code.INVALID_ARGUMENT,
        "UNKNOWN_TOKEN",
        "open.source.tokens.names[1] = 'ab' is not in the source vocabulary of g2p-en",
        "open.source.tokens.names[1]",
    ),
    "source id out of vocabulary": Refusal(
        {"open": pb.Open(model="g2p-en", source=pb.Sequence(ids=pb.TokenIds(ids=[3, 28])))},
        Code.INVALID_ARGUMENT,
        "TOKEN_OUT_OF_VOCABULARY",
        "open.source.ids.ids[1] = 28 is outside the source vocabulary of g2p-en (0 to 27)",
        "open.source.ids.ids[1]",
    ),
    "empty source text": Refusal(
        {"open": g2p("")},
        Code.INVALID_ARGUMENT,
        "EMPTY_SEQUENCE",
        "open.source.text is empty: it must have 1 token or more",
        "open.source.text",
    ),
    "empty source ids": Refusal(
        {"open": pb.Open(model="g2p-en", source=pb.Sequence(ids=pb.TokenIds()))},
        Code.INVALID_ARGUMENT,
        "EMPTY_SEQUENCE",
        "open.source.ids is empty: it must have 1 token or more",
        "open.source.ids",
    ),
    "missing source": Refusal(
        {"open": pb.Open(model="g2p-en")},
        Code.INVALID_ARGUMENT,
        "EMPTY_SEQUENCE",
        "open.source is missing: g2p-en has an encoder and needs a source",
        "open.source",
    ),
    "source over the limit": Refusal(
        {"open": g2p("a" * 65)},
        Code.INVALID_ARGUMENT,
        "SEQUENCE_TOO_LONG",
        "open.source has 65 tokens, the limit is 64 (max_source_length)",
        "open.source",
    ),
    "bad session id": Refusal(
        {"session_id": "a b", "open": g2p()},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "session_id = 'a b' must be 1 to 128 of the characters A-Z a-z 0-9 . _ : -",
        "session_id",
    ),
    "feed before open": Refusal(
        {"feed": pb.Feed(tokens=["K"])},
        Code.FAILED_PRECONDITION,
        "SESSION_NOT_OPEN",
        "feed: no session is open on this stream: send open first",
        "",
    ),
    "unknown session": Refusal(
        {"session_id": "ghost", "feed": pb.Feed(tokens=["K"])},
        Code.NOT_FOUND,
        "SESSION_NOT_FOUND",
        "session_id = 'ghost' is unknown: it was never opened here, or ended long ago",
        "session_id",
    ),
    "nothing asked": Refusal(
        {},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "request is missing: set one of open, feed, generate, score, step_batch, cancel, close",
        "",
    ),
}

BAD_REQUESTS = {
    "token out of vocabulary": Refusal(
        {"feed": pb.Feed(token_ids=[3, 4, 5, 512])},
        Code.INVALID_ARGUMENT,
        "TOKEN_OUT_OF_VOCABULARY",
        "feed.token_ids[3] = 512 is outside the vocabulary of g2p-en (0 to 41)",
        "feed.token_ids[3]",
    ),
    "unknown token": Refusal(
        {"feed": pb.Feed(tokens=["K", "XX"])},
        Code.INVALID_ARGUMENT,
        "UNKNOWN_TOKEN",
        "feed.tokens[1] = 'XX' is not in the vocabulary of g2p-en",
        "feed.tokens[1]",
    ),
    "empty feed": Refusal(
        {"feed": pb.Feed()},
        Code.INVALID_ARGUMENT,
        "EMPTY_SEQUENCE",
        "feed is empty: it must have 1 token or more",
        "feed",
    ),
    "feed over the limit": Refusal(
        {"feed": pb.Feed(token_ids=[5] * 131_073)},
        Code.INVALID_ARGUMENT,
        "SEQUENCE_TOO_LONG",
        "feed has 131073 tokens, the limit is 131072 (max_feed_tokens)",
        "feed",
    ),
    "both forms of tokens": Refusal(
        {"feed": pb.Feed(token_ids=[5], tokens=["K"])},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "feed.token_ids and feed.tokens are both set: set one",
        "feed.tokens",
    ),
    "position ahead": Refusal(
        {"feed": pb.Feed(tokens=["K"], position=9)},
        Code.FAILED_PRECONDITION,
        "POSITION_MISMATCH",
        "feed.position = 9, but the session is at position 1",
        "feed.position",
    ),
    "position behind with other tokens": Refusal(
        {"feed": pb.Feed(tokens=["S"], position=0)},
        Code.FAILED_PRECONDITION,
        "POSITION_MISMATCH",
        "feed.position = 0, but the session is at position 1",
        "feed.position",
    ),
    "generate elsewhere": Refusal(
        {"generate": pb.Generate(position=0)},
        Code.FAILED_PRECONDITION,
        "POSITION_MISMATCH",
        "generate.position = 0, but the session is at position 1",
        "generate.position",
    ),
    "second open": Refusal(
        {"session_id": "it", "open": g2p()},
        Code.FAILED_PRECONDITION,
        "SESSION_ALREADY_OPEN",
        "open: session 'it' is already open on this stream, at position 1",
        "session_id",
    ),
    "top_k of nothing": Refusal(
        {"feed": pb.Feed(tokens=["K"], outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K))},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "feed.outputs.top_k = 0 must be 1 to 42, the vocabulary's size",
        "feed.outputs.top_k",
    ),
    "top_k without its kind": Refusal(
        {"feed": pb.Feed(tokens=["K"], outputs=pb.OutputSpec(top_k=3))},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "feed.outputs.top_k = 3 can be set only with OUTPUT_KIND_TOP_K",
        "feed.outputs.top_k",
    ),
    "an answer too large": Refusal(
        {
            "feed": pb.Feed(
                token_ids=[5] * 30_000, outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True)
            )
        },
        Code.RESOURCE_EXHAUSTED,
        "ANSWER_TOO_LARGE",
        "feed.outputs requests a response of up to 5760000 bytes, the limit is 4193792 (from max_message_bytes): feed"
        " fewer tokens at a time",
        "feed.outputs",
    ),
    "temperature": Refusal(
        sampling(temperature=0.0),
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.sampling.temperature = 0 must be above 0 and at most 100",
        "generate.decoding.sampling.temperature",
    ),
    "temperature that is no number": Refusal(
        sampling(temperature=float("nan")),
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.sampling.temperature = nan must be above 0 and at most 100",
        "generate.decoding.sampling.temperature",
    ),
    "sampling top_k": Refusal(
        sampling(top_k=43),
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.sampling.top_k = 43 must be 1 to 42, the vocabulary's size",
        "generate.decoding.sampling.top_k",
    ),
    "top_p": Refusal(
        sampling(top_p=1.5),
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.sampling.top_p = 1.5 must be above 0 and at most 1",
        "generate.decoding.sampling.top_p",
    ),
    "repetition_penalty": Refusal(
        {"generate": pb.Generate(decoding=pb.Decoding(repetition_penalty=0.0))},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.repetition_penalty = 0 must be above 0 and at most 100",
        "generate.decoding.repetition_penalty",
    ),
    "min_tokens": Refusal(
        {"generate": pb.Generate(decoding=pb.Decoding(max_tokens=4, min_tokens=5))},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.min_tokens = 5 must be at most max_tokens, 4",
        "generate.decoding.min_tokens",
    ),
    "stop token id": Refusal(
        {"generate": pb.Generate(decoding=pb.Decoding(stop_token_ids=[42]))},
        Code.INVALID_ARGUMENT,
        "TOKEN_OUT_OF_VOCABULARY",
        "generate.decoding.stop_token_ids[0] = 42 is outside the vocabulary of g2p-en (0 to 41)",
        "generate.decoding.stop_token_ids[0]",
    ),
    "max_tokens": Refusal(
        {"generate": pb.Generate(decoding=pb.Decoding(max_tokens=0))},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "generate.decoding.max_tokens = 0 must be 1 to 65536 (max_generate_tokens)",
        "generate.decoding.max_tokens",
    ),
}


def check_path(field: str) -> None:
    """Checks that the field is a full path in the request message."""
    descriptor: Any = pb.StreamRequest.DESCRIPTOR
    for name in filter(None, re.sub(r"\[\d+\]", "", field).split(".")):
        assert name in descriptor.fields_by_name, field
        descriptor = descriptor.fields_by_name[name].message_type


def check_error(error: error_pb2.Error, refusal: Refusal) -> None:
    assert error.message == refusal.message
    assert error.code == refusal.code.value[0]
    assert (error.reason, error.field) == (refusal.reason, refusal.field)
    check_path(error.field)


@pytest.mark.parametrize("refusal", BAD_OPENS.values(), ids=BAD_OPENS.keys())
async def test_a_bad_open_is_refused_and_opens_nothing(shipped_service: LocalService, refusal: Refusal) -> None:
    async with wire(shipped_service.target) as stream:
        response = await stream.ask(**refusal.request)
        check_error(response.error, refusal)
        assert response.position == 0
        # the stream continues, and the refused id is free
        opened = await stream.ask(open=g2p())
        assert opened.HasField("opened")
        assert (await stream.ask(close=pb.Close())).HasField("closed")


@pytest.mark.parametrize("refusal", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_a_bad_request_is_refused_and_leaves_the_session_as_it_was(
    shipped_service: LocalService, refusal: Refusal
) -> None:
    logits = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
    async with wire(shipped_service.target) as stream:
        await stream.ask("it", open=g2p())
        await stream.ask("it", feed=pb.Feed(tokens=["K"]))
        response = await stream.ask(**refusal.request)
        check_error(response.error, refusal)
        assert (response.session_id, response.position) == ("it", 1)
        after = await stream.ask("it", feed=pb.Feed(tokens=["EH"], position=1, outputs=logits))
    async with wire(shipped_service.target) as stream:
        await stream.ask(open=g2p())
        await stream.ask(feed=pb.Feed(tokens=["K"]))
        undisturbed = await stream.ask(feed=pb.Feed(tokens=["EH"], position=1, outputs=logits))
    assert after.fed == undisturbed.fed


async def test_a_session_id_in_use_by_another_stream_is_refused(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as owner, wire(shipped_service.target) as other:
        await owner.ask("taken", open=g2p())
        refused = await other.ask("taken", open=g2p())
        assert refused.error.code == Code.ALREADY_EXISTS.value[0]
        assert refused.error.message == "session_id = 'taken' is in use by another stream"
        refused = await other.ask("taken", feed=pb.Feed(tokens=["K"]))
        assert refused.error.code == Code.FAILED_PRECONDITION.value[0]
        assert refused.error.message == "feed: session 'taken' was opened on another stream"
        assert (await owner.ask(feed=pb.Feed(tokens=["K"], position=0))).position == 1


async def test_a_session_must_be_named_when_several_are_open(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.ask("one", open=g2p())
        await stream.ask("two", open=g2p())
        refused = await stream.ask(feed=pb.Feed(tokens=["K"]))
        assert refused.error.code == Code.INVALID_ARGUMENT.value[0]
        assert refused.error.message == "session_id is missing: 2 sessions are open on this stream"


async def test_nothing_may_be_fed_while_a_generation_runs(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask("busy", open=lm("tiny-endless"))
        # more tokens than the window, so the generation runs until the client has read them
        decoding = pb.Decoding(max_tokens=5000)
        generate = await stream.send("busy", generate=pb.Generate(decoding=decoding))
        feed = await stream.send("busy", feed=pb.Feed(token_ids=[4]))
        response = await stream.read()
        while response.request_id == generate:
            assert not response.generated.finish_reason
            response = await stream.read()
        assert response.request_id == feed
        assert response.error.code == Code.FAILED_PRECONDITION.value[0]
        assert response.error.message.startswith("feed: session 'busy' is generating at position ")


async def test_a_model_without_start_token_cannot_generate_from_nothing(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask(open=lm())
        refused = await stream.ask(generate=pb.Generate())
        assert refused.error.code == Code.FAILED_PRECONDITION.value[0]
        assert refused.error.message == "this model has no start token: feed a token or a vector before you generate"
        assert (await stream.ask(feed=pb.Feed(token_ids=[5]))).position == 1


async def test_a_source_for_a_model_without_encoder_is_refused(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        refused = await stream.ask(open=lm(source=pb.Sequence(text="t1 t2")))
        assert refused.error.code == Code.INVALID_ARGUMENT.value[0]
        assert refused.error.message == "open.source must not be set: tiny-lm has no encoder"


async def test_a_message_over_the_size_limit_ends_the_call_with_resource_exhausted(
    shipped_service: LocalService,
) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.ask(open=g2p())
        await stream.send(feed=pb.Feed(tokens=["x" * 5_000_000]))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.call.read()
    assert raised.value.code() is Code.RESOURCE_EXHAUSTED
    assert raised.value.details() == "SERVER: Received message larger than max (5000012 vs. 4194304)"


async def test_a_failed_call_carries_the_error_in_google_rpc_details_and_in_our_own(
    shipped_service: LocalService,
) -> None:
    async with grpc.aio.insecure_channel(shipped_service.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Generate(pb.GenerateRequest(model="g2p-en", source=pb.Sequence(text="a%"))).read()
    error = raised.value
    assert error.code() is Code.INVALID_ARGUMENT
    assert error.details() == "source.text[1] = '%' is not in the source vocabulary of g2p-en"
    status = rpc_status.from_call(error)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain) == ("UNKNOWN_TOKEN", "carousel")
    assert bad_request.field_violations[0].field == "source.text[1]"
    own = error_pb2.Error.FromString(dict(error.trailing_metadata())["carousel-error-bin"])
    assert own.field == "source.text[1]"


def enum_fields(descriptor: Any, path: str = "") -> set[str]:
    """Returns the paths of all enum fields of a message, nested messages included."""
    found = set()
    for field in descriptor.fields:
        if field.enum_type is not None:
            found.add(path + field.name)
        elif field.message_type is not None:
            found |= enum_fields(field.message_type, f"{path}{field.name}.")
    return found


@pytest.mark.parametrize("path", STREAM_ENUMS)
async def test_an_unknown_value_of_an_enum_is_refused_with_the_names_that_it_may_have(
    tiny_service: LocalService, path: str
) -> None:
    message = pb.StreamRequest(session_id="new" if path.startswith("open") else "")
    kind, *within, last = path.split(".")
    inner = getattr(message, kind)
    inner.SetInParent()
    if kind == "open":
        inner.model = "tiny-lm"
    else:
        inner.token_ids.append(5)
    if kind == "step_batch":
        inner.handles.append(1)
    for name in within:
        inner = getattr(inner, name)
    setattr(inner, last, 99)
    async with wire(tiny_service.target) as stream:
        await stream.ask("it", open=lm())
        refused = await stream.ask(message.session_id, **{kind: getattr(message, kind)})
    assert refused.error.code == Code.INVALID_ARGUMENT.value[0]
    assert refused.error.message == f"{path} = 99 is unknown: it must be one of {STREAM_ENUMS[path]}"
    assert (refused.error.reason, refused.error.field) == ("INVALID_FIELD", path)


def test_every_enum_field_of_a_request_has_its_names_in_this_file() -> None:
    assert enum_fields(pb.StreamRequest.DESCRIPTOR) == set(STREAM_ENUMS)
    for module in (models_pb2, sessions_pb2):
        for name, descriptor in module.DESCRIPTOR.message_types_by_name.items():
            assert not (name.endswith("Request") and enum_fields(descriptor)), name


@pytest.mark.parametrize("name", ["", "../x", "a/b", "G2P", "-x", "x y", "x\n"])
async def test_an_invalid_model_name_is_refused_with_the_rule_for_names(
    shipped_service: LocalService, name: str
) -> None:
    """Load and List accept the empty name: it means all models."""
    may = "1 to 64 of the characters a-z 0-9 . _ -, the first a letter or a digit"
    message = f"model = {name!r} is not a model's name: {may}"
    async with grpc.aio.insecure_channel(shipped_service.target) as channel, wire(shipped_service.target) as stream:
        sessions, models = sessions_pb2_grpc.SessionsStub(channel), models_pb2_grpc.ModelsStub(channel)
        inference = inference_pb2_grpc.InferenceStub(channel)
        calls: list[Any] = [
            models.Get(models_pb2.ModelsGetRequest(model=name)),
            models.Unload(models_pb2.ModelsUnloadRequest(model=name, version=1)),
            inference.Score(pb.ScoreRequest(model=name)),
        ]
        if name:
            calls += [
                models.Load(models_pb2.ModelsLoadRequest(model=name)),
                sessions.List(sessions_pb2.SessionsListRequest(model=name)),
            ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert (raised.value.code(), raised.value.details()) == (Code.INVALID_ARGUMENT, message)
        refused = await stream.ask(open=pb.Open(model=name))
        assert (refused.error.code, refused.error.message) == (Code.INVALID_ARGUMENT.value[0], f"open.{message}")
        assert refused.error.field == "open.model"


async def test_too_many_sessions_are_refused_with_a_retry_delay(tiny_repository: Any) -> None:
    with local_service(tiny_repository, {"max-sessions": 2}) as service:
        async with wire(service.target) as stream:
            await stream.ask("a", open=lm())
            await stream.ask("b", open=lm())
            refused = await stream.ask("c", open=lm())
            assert refused.error.code == Code.RESOURCE_EXHAUSTED.value[0]
            assert refused.error.message == (
                "2 sessions are open, the limit of this server (max_sessions): try again later"
            )
            assert refused.error.retry_delay.ToMilliseconds() == 1000
            await stream.ask("a", close=pb.Close())
            assert (await stream.ask("c", open=lm())).HasField("opened")


async def test_an_unknown_model_or_session_is_reported_as_not_found(shipped_service: LocalService) -> None:
    async with grpc.aio.insecure_channel(shipped_service.target) as channel:
        sessions, models = sessions_pb2_grpc.SessionsStub(channel), models_pb2_grpc.ModelsStub(channel)
        cases: list[tuple[Any, grpc.StatusCode, str]] = [
            (
                sessions.Get(sessions_pb2.SessionsGetRequest(session_id="no")),
                Code.NOT_FOUND,
                "session_id = 'no' is",
            ),
            (
                sessions.Close(sessions_pb2.SessionsCloseRequest(session_id="")),
                Code.INVALID_ARGUMENT,
                "session_id = '' must be 1 to 128",
            ),
            (
                sessions.List(sessions_pb2.SessionsListRequest(page_size=1001)),
                Code.INVALID_ARGUMENT,
                "page_size = 1001 must be 1 to 1000",
            ),
            (
                sessions.List(sessions_pb2.SessionsListRequest(page_token="x")),
                Code.INVALID_ARGUMENT,
                "page_token = 'x' is invalid: use the next_page_token of a response",
            ),
            (models.Get(models_pb2.ModelsGetRequest(model="no")), Code.NOT_FOUND, "model = 'no' does not exist"),
            (
                models.Unload(models_pb2.ModelsUnloadRequest(model="g2p-en")),
                Code.INVALID_ARGUMENT,
                "version = 0 must be 1 or more: set the version",
            ),
            (models.Load(models_pb2.ModelsLoadRequest(model="no")), Code.NOT_FOUND, "model = 'no', version = 0: the"),
        ]
        for call, code, message in cases:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is code
            assert str(raised.value.details()).startswith(message)
