"""Load generators, each a process of its own: closed-loop callers of one gRPC method, and the bare echo server.

Messages travel as bytes on both sides, so that callers of the echo and of `Rank` cost the same; answers are read after
the clock has stopped.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter

import grpc
import numpy as np
import uvloop
from bench_mesh import request
from gyre.gateway.v1 import gateway_pb2 as pb

RANK = "/gyre.gateway.v1.GatewayService/Rank"
ECHO = "/bench.Echo/Echo"
_WARM_UP_S = 1.0
_REQUESTS = 997


async def echo(address: str, reply_bytes: int) -> None:
    """Answer every call with so many bytes, until the process is ended."""
    reply = bytes(reply_bytes)

    async def answer(_request: bytes, _context: object) -> bytes:
        return reply

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def call(address: str, method: str, messages: list[bytes], *, callers: int, seconds: float) -> dict[str, object]:
    """Call as fast as `callers` closed loops can, after a warm-up; return latencies and answers in numbers."""
    latencies: list[float] = []
    answers: list[bytes] = []
    calls = 0
    begin = time.perf_counter() + _WARM_UP_S
    end = begin + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        method_call = channel.unary_unary(method)

        async def caller(number: int) -> None:
            nonlocal calls
            at = number * 61
            while (started := time.perf_counter()) < end:
                answer = await method_call(messages[at % len(messages)], timeout=10)
                at += 1
                calls += 1
                if started >= begin:
                    latencies.append(time.perf_counter() - started)
                    answers.append(answer)

        await asyncio.gather(*(caller(number) for number in range(callers)))
    return {**_figures(latencies, seconds), "calls": calls, "degraded": _degraded(method, answers)}


def _figures(latencies: list[float], seconds: float) -> dict[str, float]:
    half, most = np.quantile(latencies, (0.5, 0.99)) * 1e3
    return {"per_s": len(latencies) / seconds, "p50_ms": half, "p99_ms": most}


def _degraded(method: str, answers: list[bytes]) -> dict[str, int]:
    if method != RANK:
        return {}
    reasons = Counter(pb.RankResponse.FromString(answer).provenance.degraded_reason for answer in answers)
    return {reason: count for reason, count in reasons.items() if reason}


def main() -> None:
    """Run one generator: `echo ADDRESS BYTES`, or `rank|echo-call ADDRESS --callers N --seconds S`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("echo", "call-echo", "call-rank"))
    parser.add_argument("address")
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--loop", default="bench")
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    if given.kind == "echo":
        uvloop.run(echo(given.address, given.bytes))
        return
    messages = [request(given.loop, number).SerializeToString() for number in range(_REQUESTS)]
    method = RANK if given.kind == "call-rank" else ECHO
    figures = uvloop.run(call(given.address, method, messages, callers=given.callers, seconds=given.seconds))
    sys.stdout.write(json.dumps(figures) + os.linesep)


if __name__ == "__main__":
    main()
