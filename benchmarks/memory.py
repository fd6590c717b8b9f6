"""Memory of idle streams: the server's resident memory with many idle streams, minus that with none."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from benchmarks.measure import Report, Row
from benchmarks.setup import Setup
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from examples.processes import resident_bytes

WANTED_BYTES = 200_000_000
_CONNECTIONS = 60
_AT_ONCE = 200


def memory(setup: Setup) -> Report:
    """Resident memory that 5,000 idle streams with a session each add to a server, over 200 MB."""
    question = f"memory that {setup.num_idle:,} idle streams with a session each add, over {WANTED_BYTES / 1e6:.0f} MB"
    report = setup.report("memory", question)
    with setup.service({"max-sessions": setup.num_idle + 100}) as carousel:
        before, after = asyncio.run(_measure(setup, carousel.target, carousel.pid))
    grown = max(1, after - before)
    ratio = grown / WANTED_BYTES
    report.rows.append(Row(setup.wire, grown, WANTED_BYTES, ratio, [ratio], "bytes", 1.0, "at most"))
    report.notes.append(f"{grown / setup.num_idle / 1e3:.1f} KB a stream")
    return report


async def _measure(setup: Setup, target: str, pid: int) -> tuple[int, int]:
    """Returns the server's resident memory in bytes, before the streams and with them."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(_CONNECTIONS)]
    try:
        await _open(channels[0], setup.small.name)  # the first session allocates what the server needs only once
        before = resident_bytes(pid)
        streams = []
        for begin in range(0, setup.num_idle, _AT_ONCE):
            indexes = range(begin, min(begin + _AT_ONCE, setup.num_idle))
            opening = (_open(channels[index % _CONNECTIONS], setup.small.name) for index in indexes)
            streams += await asyncio.gather(*opening)
        return before, resident_bytes(pid)
    finally:
        for channel in channels:
            await channel.close()


async def _open(channel: grpc.aio.Channel, model: str) -> Any:
    """Opens a stream with a session. Raises RuntimeError when the server refuses it."""
    stream: Any = inference_pb2_grpc.InferenceStub(channel).Stream()
    await stream.write(pb.StreamRequest(request_id=1, open=pb.Open(model=model)))
    answer = await stream.read()
    if answer is grpc.aio.EOF or not answer.HasField("opened"):
        raise RuntimeError(f"the server refused a stream: {answer}")
    return stream
