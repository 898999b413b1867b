"""The dispatcher of a pool with workers that are stand-ins: what is decided, without Ray and without waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed import dispatcher as dispatching
from edm_ray.distributed.cluster.preflight import WorkerRequest
from edm_ray.distributed.dispatcher import MAX_DEATHS, Dispatcher, ItemFailed, PoolSpec
from edm_ray.evaluation.chunks import Chunk, Generator, chunks_of
from edm_ray.storage.artifacts import key_of

GENERATOR = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")


def actor(**methods) -> SimpleNamespace:
    """A stand-in for an actor's handle; it answers unless it is given another ``hello``."""

    async def hello() -> tuple[str, int]:
        return "host", 7

    given = {"hello": hello} | methods
    return SimpleNamespace(**{name: SimpleNamespace(remote=each) for name, each in given.items()})


class World:
    """Workers that die over some chunks, and with them whatever else they have in hand."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly, self.most_at_once, self.runs = deadly, 0, dict[str, int]()

    def worker(self) -> SimpleNamespace:
        died, in_hand = asyncio.Event(), set[str]()

        async def make(item: tuple[Chunk]) -> None:
            key = key_of(item[0])
            in_hand.add(key)
            self.most_at_once = max(self.most_at_once, len(in_hand))
            self.runs[key] = self.runs.get(key, 0) + 1
            try:
                await asyncio.wait_for(died.wait(), 0.002)
            except TimeoutError:
                if key not in self.deadly:
                    return
                died.set()
            finally:
                in_hand.discard(key)
            raise ActorDiedError()

        async def load() -> None:
            await asyncio.sleep(0)

        return actor(load=load, make=make)


@pytest.mark.parametrize("in_hand", [1, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_over_which_workers_die_take_no_other_with_them(monkeypatch, in_hand, workers):
    monkeypatch.setattr(dispatching, "_end", lambda worker: None)
    chunks = chunks_of(GENERATOR, sampler(num_steps=4), "search", 20, 50)
    world = World({key_of(chunks[3]), key_of(chunks[11])})

    async def play() -> tuple[list[object], Dispatcher]:
        ask = WorkerRequest(what="sampling", count=workers)
        dispatcher = Dispatcher(b"", PoolSpec(ask=ask, device="cpu", slots=workers, in_hand=in_hand))
        dispatcher.recipe = SimpleNamespace(is_stored=lambda artifact: False)
        monkeypatch.setattr(dispatcher, "_start", world.worker)
        ends = await asyncio.gather(*[dispatcher.ensure(chunk) for chunk in chunks], return_exceptions=True)
        for task in dispatcher.running:
            task.cancel()
        return list(ends), dispatcher

    ends, dispatcher = asyncio.run(play())
    failed = [i for i, end in enumerate(ends) if isinstance(end, ItemFailed)]
    assert failed == [3, 11] and all(end is True for i, end in enumerate(ends) if i not in failed)
    assert world.most_at_once == in_hand
    assert [world.runs[key_of(chunks[i])] for i in failed] == [MAX_DEATHS] * 2
    # One that was in hand beside a deadly chunk is made alone from then on.
    assert max(count for key, count in world.runs.items() if key not in world.deadly) <= 2
    assert dispatcher.counts["made"] == 18 and not dispatcher.under_way


@pytest.mark.parametrize(("light", "most"), [(False, 4), (True, 4), (True, 1)])
def test_workers_that_work_now_and_then_are_one_until_items_wait(monkeypatch, light, most):
    """Each is a process that imports torch. What waits at two looks in a row has waited for a while."""
    monkeypatch.setattr(dispatching, "_end", lambda worker: None)
    first, started, taken, release = 1 if light else most, [], [], asyncio.Event()

    async def load() -> None: ...

    async def make(item: tuple[Chunk]) -> None:
        taken.append(item)
        await release.wait()

    def worker() -> SimpleNamespace:
        started.append(1)
        return actor(load=load, make=make)

    async def play() -> list[int]:
        ask = WorkerRequest(what="measuring", count=most)
        dispatcher = Dispatcher(b"", PoolSpec(ask=ask, device="cpu", slots=most, light=light))
        dispatcher.recipe = SimpleNamespace(is_stored=lambda artifact: False)
        monkeypatch.setattr(dispatcher, "_start", worker)
        chunks, seen = chunks_of(GENERATOR, sampler(num_steps=4), "search", 8, 50), []
        waiting = asyncio.gather(*[dispatcher.ensure(chunk) for chunk in chunks])
        while len(taken) < first or dispatcher.jobs.qsize() < len(chunks) - first:
            await asyncio.sleep(0.001)
        for _ in range(8):
            seen.append(len(started))
            dispatcher._grow_where_behind()
            await asyncio.sleep(0.01)
        release.set()
        assert await waiting == [True] * len(chunks)
        for task in dispatcher.running:
            task.cancel()
        return seen

    seen = asyncio.run(play())
    assert seen[0] == seen[1] == first and seen[-1] == most
