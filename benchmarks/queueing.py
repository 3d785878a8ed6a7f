"""Simulations of the queue in front of an engine: no clock, no engine, the server's own `Queue`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import click
import numpy as np

from acestep.batching import BatchItem, form_batches
from acestep.request import GenerationRequest
from serve.queue import Queue, Ticket
from serve.settings import QueueSection

FRAMES_PER_SECOND = 44_100 / 512 / 8
FRAME_BUDGET, MAX_BATCH_SIZE = 16_384, 32

Take = Callable[[Queue, float], list[Ticket]]


def by_policy(queue: Queue, now: float) -> list[Ticket]:
    """As the server does it."""
    return queue.take(now)


def in_order(queue: Queue, now: float, alike: float = 1.25) -> list[Ticket]:
    """First come, first served: the oldest, and who is next to it in line for as long as they fit into one pass.

    Args:
        alike: so many times may the longest of them be as long as the shortest.
    """
    waiting = sorted(queue._tickets.values(), key=lambda each: each.arrived)
    batch = waiting[:1]
    for ticket in waiting[1:]:
        frames = [each.frames for each in [*batch, ticket]]
        fits = len(frames) <= MAX_BATCH_SIZE and max(frames) * len(frames) <= FRAME_BUDGET
        fits = fits and max(frames) <= alike * min(frames)
        if not fits or ticket.key != batch[0].key:
            break
        batch.append(ticket)
    return [ticket for ticket in batch if queue.remove(ticket.id)]


def as_they_come(queue: Queue, now: float) -> list[Ticket]:
    """The oldest, as many as fit, whatever their settings: the engine sorts them out itself."""
    waiting = sorted(queue._tickets.values(), key=lambda each: each.arrived)[:MAX_BATCH_SIZE]
    return [ticket for ticket in waiting if queue.remove(ticket.id)]


def arrivals(rate: float, count: int, request: Callable[[random.Random, int], GenerationRequest]) -> Iterator[Ticket]:
    """Songs that come at random, `rate` a second."""
    chosen, now = random.Random(0), 0.0
    for number in range(count):
        now += chosen.expovariate(rate)
        yield Ticket(str(number), request(chosen, number), now)


def simulate(
    tickets: Iterator[Ticket],
    take: Take,
    seconds_of: Callable[[list[Ticket]], float],
    speed: float,
    section: QueueSection | None = None,
) -> tuple[dict[str, tuple[Ticket, float, float]], float, float]:
    """One engine's day: per song its ticket, wait and end; seconds that the engine was busy; seconds in all."""
    queue = Queue(section or QueueSection(), frame_budget=FRAME_BUDGET, max_batch_size=MAX_BATCH_SIZE)
    queue.frames_per_second = speed
    coming = list(tickets)
    done: dict[str, tuple[Ticket, float, float]] = {}
    now = busy = 0.0
    place = 0
    while place < len(coming) or len(queue):
        if not len(queue):
            now = max(now, coming[place].arrived)
        while place < len(coming) and coming[place].arrived <= now:
            queue.add(coming[place])
            place += 1
        batch = take(queue, now)
        took = seconds_of(batch)
        for ticket in batch:
            done[ticket.id] = (ticket, now - ticket.arrived, now + took)
        now, busy = now + took, busy + took
    return done, busy, now


@click.command()
@click.option("--songs", default=4000, show_default=True)
@click.option("--short", default=10.0, show_default=True, help="Seconds of a short song.")
@click.option("--long", "long", default=240.0, show_default=True, help="Seconds of a long one.")
@click.option("--share", default=0.3, show_default=True, help="Of the songs, how many are long.")
@click.option("--speed", default=20.0, show_default=True, help="Seconds of audio that the engine makes in a second.")
@click.option("--fixed", default=0.5, show_default=True, help="Seconds that a batch takes beside that.")
@click.option("--loads", default="0.5,0.7,0.9", show_default=True, help="Of the engine, if each song came alone.")
def lengths(songs: int, short: float, long: float, share: float, speed: float, fixed: float, loads: str) -> None:
    """Waits of short and of long songs, by the server's queue and in order of arrival."""
    frames = speed * FRAMES_PER_SECOND

    def seconds_of(batch: list[Ticket]) -> float:
        return fixed + max(each.frames for each in batch) * len(batch) / frames

    def request(chosen: random.Random, number: int) -> GenerationRequest:
        return GenerationRequest(prompt="song", duration=long if chosen.random() < share else short, seed=number)

    alone = fixed + (share * long + (1 - share) * short) / speed
    print(
        f"{songs} songs, {share:.0%} of {long:g} s, the rest of {short:g} s; a batch takes {fixed:g} s and its frames"
    )
    print(f"at {speed:g} s of audio a second, padded to its longest song; waits in seconds, from arrival to engine")
    print(f"{'load':>5} {'':>22} {'short p50':>10} {'p95':>7} {'long p50':>10} {'p95':>7} {'longest':>8} {'busy':>6}")
    target = 1.5 * (fixed + long / speed)
    policies: list[tuple[str, Take, QueueSection]] = [
        ("queue", by_policy, QueueSection()),
        (f"queue, target {target:.0f} s", by_policy, QueueSection(latency_target_seconds=target)),
        ("oldest first, alike", by_policy, QueueSection(max_wait_seconds=0)),
        ("in order, alike", in_order, QueueSection()),
        ("in order, any lengths", partial(in_order, alike=1e9), QueueSection()),
    ]
    for load in map(float, loads.split(",")):
        for name, take, section in policies:
            done, busy, total = simulate(arrivals(load / alone, songs, request), take, seconds_of, frames, section)
            waits = {
                length: [waited for ticket, waited, _ in done.values() if ticket.request.duration == length]
                for length in (short, long)
            }
            half, most = np.percentile(waits[short], [50, 95])
            long_half, long_most = np.percentile(waits[long], [50, 95])
            print(
                f"{load:5.1f} {name:>22} {half:10.1f} {most:7.1f} {long_half:10.1f} {long_most:7.1f} "
                f"{max(waits[long]):8.1f} {busy / total:6.1%}"
            )


@click.command()
@click.option("--songs", default=4000, show_default=True)
@click.option("--adapters", "count", default=5, show_default=True, help="So many, and songs without one.")
@click.option("--switch", default=0.5, show_default=True, help="Seconds to go over to another adapter: an assumption.")
@click.option("--duration", default=30.0, show_default=True, help="Seconds of a song.")
@click.option("--speed", default=40.0, show_default=True, help="Seconds of audio that the engine makes in a second.")
@click.option("--fixed", default=0.5, show_default=True, help="Seconds that a pass takes beside that.")
@click.option("--loads", default="0.5,1.0,2.0", show_default=True, help="Of the engine, if each song came alone.")
def adapters(songs: int, count: int, switch: float, duration: float, speed: float, fixed: float, loads: str) -> None:
    """Switches of adapters and songs a second: batches by adapter as the queue makes them, and in order of arrival."""
    frames = speed * FRAMES_PER_SECOND

    def request(chosen: random.Random, number: int) -> GenerationRequest:
        lora = chosen.choice([None, *(f"adapter-{each}" for each in range(count))])
        return GenerationRequest(prompt="song", duration=duration, seed=number, lora=lora)

    print(
        f"{songs} songs of {duration:g} s, {count} adapters and none alike often; a switch takes {switch:g} s, a pass"
    )
    print(
        f"{fixed:g} s and its frames at {speed:g} s of audio a second; as they come: the engine sorts what it is given"
    )
    print(f"{'load':>5} {'':>14} {'switches/1000':>14} {'songs a pass':>13} {'songs/s':>8} {'wait p50':>9} {'p95':>7}")
    alone = fixed + duration / speed
    for load in map(float, loads.split(",")):
        for name, take in (("queue", by_policy), ("as they come", as_they_come), ("in order", in_order)):
            state = {"lora": "none yet", "switches": 0, "passes": 0}

            def seconds_of(batch: list[Ticket], state: dict = state) -> float:
                items = [BatchItem(place, each.frames, each.key) for place, each in enumerate(batch)]
                took = 0.0
                for positions in form_batches(items, frame_budget=FRAME_BUDGET, max_batch_size=MAX_BATCH_SIZE):
                    lora = batch[positions[0]].request.lora
                    changed = lora != state["lora"]
                    state["switches"] += changed
                    state["passes"] += 1
                    state["lora"] = lora
                    longest = max(batch[position].frames for position in positions)
                    took += switch * changed + fixed + longest * len(positions) / frames
                return took

            done, _, total = simulate(arrivals(load / alone, songs, request), take, seconds_of, frames)
            half, most = np.percentile([waited for _, waited, _ in done.values()], [50, 95])
            print(
                f"{load:5.1f} {name:>14} {1000 * state['switches'] / songs:14.0f} {songs / state['passes']:13.1f} "
                f"{songs / total:8.2f} {half:9.1f} {most:7.1f}"
            )


@click.command()
@click.option("--songs", default=4000, show_default=True)
@click.option("--steps", default=60, show_default=True)
@click.option("--size", default=16, show_default=True, help="Most songs of a batch.")
@click.option("--song", default=6.0, show_default=True, help="Seconds of a song that is alone in the engine.")
@click.option("--fixed", default="0,0.5,0.9", show_default=True, help="Shares of a step that many songs cost but once.")
@click.option("--loads", default="0.3,0.6,0.9", show_default=True, help="Of what full batches make.")
def joining(songs: int, steps: int, size: int, song: float, fixed: str, loads: str) -> None:
    """From arrival to song, where songs wait for the end of the running batch and where they join at its next step.

    Joining is taken to be free, and songs to have one length: what is found is the most that there is to gain.
    """
    print(f"{songs} songs of {steps} steps, {song:g} s alone, up to {size} in a batch; seconds from arrival to song")
    print(
        f"{'fixed':>6} {'load':>5} {'':>16} {'wait p50':>9} {'p95':>6} {'whole p50':>10} {'p95':>6} {'in a step':>10}"
    )
    for share in map(float, fixed.split(",")):
        step = song / steps

        def step_seconds(count: int, share: float = share, step: float = step) -> float:
            return step * (share + (1 - share) * count)

        capacity = size / (steps * step_seconds(size))
        for load in map(float, loads.split(",")):
            chosen, now, times = random.Random(0), 0.0, []
            for _ in range(songs):
                now += chosen.expovariate(load * capacity)
                times.append(now)
            for name, joins in (("batch by batch", False), ("joins at a step", True)):
                waits, wholes, held = _denoised(times, steps, size, step_seconds, joins)
                half, most = np.percentile(waits, [50, 95])
                whole_half, whole_most = np.percentile(wholes, [50, 95])
                print(
                    f"{share:6.1f} {load:5.1f} {name:>16} {half:9.1f} {most:6.1f} {whole_half:10.1f} {whole_most:6.1f} "
                    f"{held:10.1f}"
                )


def _denoised(
    times: list[float], steps: int, size: int, step_seconds: Callable[[int], float], joins: bool
) -> tuple[list[float], list[float], float]:
    """Waits, whole times and songs in a step on average; one step after the other."""
    waits: list[float] = []
    wholes: list[float] = []
    running: list[tuple[float, int]] = []
    now, place, held, taken = 0.0, 0, 0, 0
    while place < len(times) or running:
        if not running and times[place] > now:
            now = times[place]
        while (joins or not running or running[0][1] == steps) and place < len(times):
            if times[place] > now or len(running) == size:
                break
            waits.append(now - times[place])
            running.append((times[place], steps))
            place += 1
        now += step_seconds(len(running))
        held, taken = held + len(running), taken + 1
        running = [(arrived, left - 1) for arrived, left in running]
        wholes += [now - arrived for arrived, left in running if not left]
        running = [each for each in running if each[1]]
    return waits, wholes, held / taken
