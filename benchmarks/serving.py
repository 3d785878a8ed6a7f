"""What the server costs around its engine, and how it behaves when it is asked for more than it can make.

    python -m benchmarks.serving latency        # one caller: what HTTP, queue and encoding add to the engine
    python -m benchmarks.serving throughput     # many callers: is the engine as busy as with the same batches alone?
    python -m benchmarks.serving overload       # five times the capacity: who is refused, is anything lost?
    python -m benchmarks.serving pool           # callers with and without a batch job behind them
    python -m benchmarks.serving lengths        # simulated: short songs beside long ones, by the queue and in order
    python -m benchmarks.serving adapters       # simulated: batches by adapter, and in order
    python -m benchmarks.serving joining        # simulated: what joining a running batch could gain at most

The first four start a real server in a process of its own, `--ray` the application on Ray Serve; its engine waits
instead of computing (`benchmarks.simulated`), or is the tiny model (`latency --tiny`). `serving --log COMMAND` appends
what is printed to benchmarks/LOG.md.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import platform
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from typing import Any

import aiohttp
import click
import numpy as np

from acestep.request import GenerationRequest
from benchmarks.log import append_to_log
from benchmarks.queueing import adapters, joining, lengths
from benchmarks.servers import Measured, config_of, measured

SIMULATED = "benchmarks.servers:Engine"
ON_RAY = click.option("--ray", "on_ray", is_flag=True, help="The application on Ray Serve.")
TIMEOUT = aiohttp.ClientTimeout(total=600)


class Printed(io.StringIO):
    """Keeps what it prints."""

    def write(self, text: str) -> int:
        """To the terminal too, at once."""
        print(text, end="", file=sys.__stdout__, flush=True)
        return super().write(text)


@click.group()
@click.option("--log", is_flag=True, help="Append what is printed to benchmarks/LOG.md.")
@click.pass_context
def main(context: click.Context, log: bool) -> None:
    """Measure the server; see each command."""
    context.obj = context.with_resource(redirect_stdout(Printed()))


@main.result_callback()
@click.pass_context
def keep(context: click.Context, result: object, log: bool) -> None:
    """Log what a command printed that came to its end."""
    if log:
        hardware = f"{os.cpu_count()} cores, {platform.machine()}"
        append_to_log(f"the server, {context.invoked_subcommand}", hardware, context.obj.getvalue().splitlines())


for command in (lengths, adapters, joining):
    main.add_command(command)


def percentiles(values: list[float], *which: float) -> list[float]:
    """Of seconds, in milliseconds."""
    return [1000 * float(np.percentile(values, each)) for each in which] if values else [float("nan")] * len(which)


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> tuple[int, bytes, float]:
    """Status, body and seconds of a request."""
    started = time.perf_counter()
    async with session.post(path, json=body) as answer:
        data = await answer.read()
        return answer.status, data, time.perf_counter() - started


def _with_client(server: Measured, work: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(server.url, timeout=TIMEOUT, connector=connector) as session:
            return await work(session)

    return asyncio.run(run())


@main.command()
@ON_RAY
@click.option("--requests", default=60, show_default=True, help="Of each kind, one after the other.")
@click.option("--batch", default=0.1, show_default=True, help="Seconds of a song in the engine.")
@click.option("--durations", default="1,30", show_default=True, help="Seconds of audio.")
@click.option("--formats", default="wav,flac", show_default=True)
@click.option("--tiny", is_flag=True, help="The tiny model with two steps.")
def latency(on_ray: bool, requests: int, batch: float, durations: str, formats: str, tiny: bool) -> None:
    """One caller: the time of the whole request over that of the engine alone, in ms.

    Judging a song and encoding it are measured apart, with nothing else around; what is left of the best is what
    serving it takes. The best of each, since whatever else runs can only add to it. Set OMP_NUM_THREADS=1.
    """
    checkpoint = "tiny" if tiny else f"simulated?batch={batch}"
    values = config_of("acestep.engine:Engine" if tiny else SIMULATED, checkpoint)
    print(
        f"{'s':>4} {'format':>6} {'answer':>6} {'engine':>8} {'added p50':>10} {'p95':>7} {'best':>7} "
        f"{'judging':>8} {'encoding':>9} {'rest':>7} {'CPU ms':>7}"
    )
    with measured(values, on_ray=on_ray) as server:
        for duration in map(float, durations.split(",")):
            body = {"prompt": "piano, slow", "duration": duration, "num_inference_steps": 2, "seed": 7}
            for kind in formats.split(","):
                engine, judging, encoding = _alone(values, body, kind, max(10, requests // 3))
                for answer, path in (("bytes", "/v1/audio/generate"), ("url", "/v1/audio/generations")):
                    asked = body | {"response_format": kind}

                    async def one_by_one(session: aiohttp.ClientSession, path: str = path, asked: Any = asked) -> Any:
                        return [await _post(session, path, asked) for _ in range(requests + 3)]

                    before = server.cpu()
                    answers = _with_client(server, one_by_one)[3:]
                    cpu = 1000 * (server.cpu() - before) / (requests + 3)
                    assert all(status == 200 for status, _, _ in answers), answers[0]
                    half, most, best = percentiles([took for _, _, took in answers], 50, 95, 0)
                    print(
                        f"{duration:4g} {kind:>6} {answer:>6} {engine:8.1f} {half - engine:10.1f} "
                        f"{most - engine:7.1f} {best - engine:7.1f} {judging:8.1f} {encoding:9.1f} "
                        f"{best - engine - judging - encoding:7.1f} {cpu:7.1f}"
                    )


def _alone(values: dict[str, Any], body: dict[str, Any], kind: str, count: int) -> list[float]:
    """Best milliseconds of the engine, of judging its song and of turning it into a file, with nothing else around."""
    from acestep.audio_format import AudioFormat
    from pipelines.attempts import Attempts
    from pipelines.sections import BestOfSection
    from serve.delivering import Deliverer
    from serve.engine import engine_actor
    from serve.service import Service
    from serve.settings import ServeConfig
    from serve.source_files import SourceFiles
    from serve.work import Order

    config = ServeConfig.parse(values)
    actor, storage, attempts = (
        engine_actor(config),
        Service.storage_of(config),
        Attempts(config.quality, BestOfSection()),
    )
    deliverer, sources = Deliverer(config, storage), SourceFiles(storage)
    request = GenerationRequest.parse(body | {"id": "alone/0"})
    order = Order(request, AudioFormat.parse(format=kind))
    times: list[list[float]] = []
    calls = os.environ.pop("MEASURED_CALLS")
    for _ in range(count + 2):
        begin = time.perf_counter()
        songs = actor.generate([request], lambda done, total: None)
        made = time.perf_counter()
        (verdict,) = attempts.make([request], [None], lambda asked, songs=songs: songs)
        judged = time.perf_counter()
        deliverer.delivery(order, verdict, sources)
        times.append([made - begin, judged - made, time.perf_counter() - judged])
    os.environ["MEASURED_CALLS"] = calls
    return [1000 * min(each) for each in zip(*times[2:], strict=True)]


@main.command()
@ON_RAY
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--callers", default=64, show_default=True)
@click.option("--size", default=16, show_default=True, help="Most songs of a batch.")
@click.option("--batch", default=0.8, show_default=True, help="Seconds of a batch in the engine.")
@click.option("--per-song", default=0.05, show_default=True, help="Seconds more for each of its songs.")
@click.option("--duration", default=1.0, show_default=True, help="Seconds of audio.")
def throughput(
    on_ray: bool, seconds: float, callers: int, size: int, batch: float, per_song: float, duration: float
) -> None:
    """Many callers, each asking again at once: songs a second, and the engine's own on the same batches."""
    values = config_of(SIMULATED, f"simulated?batch={batch}&song={per_song}", batch={"max_batch_size": size})
    body = {"prompt": "piano, slow", "duration": duration, "response_format": "flac"}

    async def ask(session: aiohttp.ClientSession) -> int:
        ends = time.perf_counter() + seconds

        async def caller() -> int:
            made = 0
            while time.perf_counter() < ends:
                status, data, _ = await _post(session, "/v1/audio/generate", body)
                assert status == 200, data
                made += time.perf_counter() < ends
            return made

        return sum(await asyncio.gather(*(caller() for _ in range(callers))))

    with measured(values, on_ray=on_ray) as server:
        before, started = server.cpu(), time.monotonic()
        answered = _with_client(server, ask)
        cpu, calls = server.cpu() - before, server.calls_since(started)[1:]  # The first one had no company.
    songs = sum(call.songs for call in calls)
    wall, own = calls[-1].end - calls[0].begin, sum(batch + per_song * call.songs for call in calls)
    gaps = [after.begin - call.end for call, after in itertools.pairwise(calls)]
    half, most = percentiles(gaps, 50, 95)
    print(f"{callers} callers, batches of up to {size} in {batch:g} + {per_song:g} s a song, {wall:.1f} s")
    print(f"songs                     {songs} in {len(calls)} batches, {songs / len(calls):.1f} in each")
    print(f"songs a second            {songs / wall:.2f} ({answered} answered in {seconds:g} s)")
    print(f"the engine's own          {songs / own:.2f}, on the same batches")
    print(f"share                     {own / wall:.1%} (target 90%)")
    print(f"between batches p50, p95  {half:.0f}, {most:.0f} ms")
    print(f"in the engine             {sum(call.end - call.begin for call in calls) / own - 1:+.1%} against its own")
    print(f"CPU a song                {1000 * cpu / songs:.1f} ms, of the server's processes")


@main.command()
@ON_RAY
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--times", default=5.0, show_default=True, help="So many times the capacity is asked for.")
@click.option("--size", default=8, show_default=True, help="Songs of a batch.")
@click.option("--batch", default=1.0, show_default=True, help="Seconds of a batch in the engine.")
@click.option("--waiting", default=64, show_default=True, help="Songs that may wait.")
def overload(on_ray: bool, seconds: float, times: float, size: int, batch: float, waiting: int) -> None:
    """Requests that come at a rate whatever the answers: half want the song at once, half a job."""
    rate = times * size / batch
    values = config_of(
        SIMULATED, f"simulated?batch={batch}", batch={"max_batch_size": size}, queue={"max_songs": waiting}
    )
    statuses: dict[str, list[int]] = {"song": [], "job": []}
    waits: list[float] = []
    refusals: list[float] = []
    memory: list[float] = []
    jobs: list[str] = []

    async def ask(session: aiohttp.ClientSession, ends: float) -> None:
        tasks = []
        number, due = 0, time.perf_counter()
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(session, "song" if number % 2 else "job")))
            number, due = number + 1, due + random.expovariate(rate)
        await asyncio.gather(*tasks)

    async def one(session: aiohttp.ClientSession, kind: str) -> None:
        path = "/v1/audio/generate" if kind == "song" else "/v1/audio/jobs"
        status, data, took = await _post(session, path, {"prompt": "piano, slow", "duration": 1})
        statuses[kind].append(status)
        if status == 202:
            jobs.append(json.loads(data)["id"])
        elif status == 200:
            waits.append(took)
        elif status == 429:
            refusals.append(took)

    async def watch(server: Measured) -> None:
        while True:
            memory.append(server.rss() / 2**20)
            await asyncio.sleep(1)

    async def count(session: aiohttp.ClientSession) -> dict[str, int]:
        found: dict[str, int] = {}
        for id in jobs:
            while True:
                async with session.get(f"/v1/audio/jobs/{id}") as answer:
                    state = (await answer.json()).get("status", "missing")
                if state not in ("queued", "in_progress"):
                    break
                await asyncio.sleep(0.2)
            found[state] = found.get(state, 0) + 1
        return found

    with measured(values, on_ray=on_ray) as server:

        async def work(session: aiohttp.ClientSession) -> dict[str, int]:
            await ask(session, time.perf_counter() + min(5.0, seconds / 4))  # Until all that is needed is loaded.
            for each in (statuses["song"], statuses["job"], waits, refusals):
                each.clear()
            watching = asyncio.create_task(watch(server))
            await ask(session, time.perf_counter() + seconds)
            ended = await count(session)
            watching.cancel()
            return ended

        before, started = server.cpu(), time.monotonic()
        ended = _with_client(server, work)
        cpu, wall, calls = server.cpu() - before, time.monotonic() - started, server.calls_since(started)
    asked = sum(map(len, statuses.values()))
    print(f"{asked} requests in {seconds:g} s, {times:g} times the capacity of {size / batch:g} songs a second")
    for kind, found in statuses.items():
        print(f"  asked for a {kind:<5} {dict(sorted((each, found.count(each)) for each in set(found)))}")
    print(f"  jobs that were taken: {len(jobs)}, became {ended}")
    print(f"  refused after p50, p95       {', '.join(f'{each:.1f}' for each in percentiles(refusals, 50, 95))} ms")
    print(f"  songs came after p50, p95    {', '.join(f'{each / 1000:.1f}' for each in percentiles(waits, 50, 95))} s")
    print(f"  engine busy                  {len(calls) * batch / wall:.1%}, with the draining in the end")
    print(f"  memory begin, most, end      {memory[0]:.0f}, {max(memory):.0f}, {memory[-1]:.0f} MiB")
    print(f"  CPU                          {cpu / wall:.0%} of one core")


@main.command()
@ON_RAY
@click.option("--seconds", default=30.0, show_default=True, help="Of each of the two.")
@click.option("--load", default=0.3, show_default=True, help="Of callers, as a share of what single songs would take.")
@click.option("--size", default=8, show_default=True, help="Songs of the job's batches.")
@click.option("--batch", default=0.4, show_default=True, help="Seconds of a batch in the engine.")
@click.option("--per-song", default=0.05, show_default=True, help="Seconds more for each of its songs.")
def pool(on_ray: bool, seconds: float, load: float, size: int, batch: float, per_song: float) -> None:
    """Callers who come at random: what they wait with and without a batch job, and how busy the engine is."""
    checkpoint = f"simulated?batch={batch}&song={per_song}"
    values = config_of(SIMULATED, checkpoint, batch={"max_batch_size": size})
    rate = load / (batch + per_song)
    whole = batch + per_song * size
    print(
        f"a batch of the job takes {whole:.2f} s, a caller's song alone {batch + per_song:.2f} s; {rate:.2f} a second"
    )
    print(
        f"{'':12} {'callers':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'engine busy':>12} {'songs of the job':>17}"
    )
    for name, offline in (("callers only", 0), ("with a job", size)):
        chosen = random.Random(1)

        async def ask(session: aiohttp.ClientSession, chosen: random.Random = chosen) -> list[float]:
            tasks = []
            due = time.perf_counter()
            ends = due + seconds
            while due < ends:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                body = {"prompt": "piano, slow", "duration": 1}
                tasks.append(asyncio.create_task(_post(session, "/v1/audio/generate", body)))
                due += chosen.expovariate(rate)
            answers = await asyncio.gather(*tasks)
            assert all(status == 200 for status, _, _ in answers)
            return [took for _, _, took in answers]

        with measured(values, on_ray=on_ray, offline=offline) as server:
            time.sleep(3 * whole)
            started = time.monotonic()
            times = _with_client(server, ask)
            calls, wall = server.calls_since(started), time.monotonic() - started
        songs = sum(call.songs for call in calls)
        busy = sum(call.end - call.begin for call in calls) / wall
        half, most, all_of = percentiles(times, 50, 95, 99)
        print(
            f"{name:12} {len(times):8} {half:8.0f} {most:8.0f} {all_of:8.0f} {busy:12.1%} "
            f"{(songs - len(times)) / wall:14.2f} /s"
        )


if __name__ == "__main__":
    main()
