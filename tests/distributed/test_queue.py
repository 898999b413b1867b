"""The queue of a pool with samplers that are stand-ins: what is decided, without Ray and without waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed import dispatcher as queue_module
from edm_ray.distributed.chunks import Chunk, Generator, chunks_of
from edm_ray.distributed.cluster.preflight import Ask
from edm_ray.distributed.dispatcher import MAX_DEATHS, ChunkFailed, Crew, Queue

GENERATOR = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")


class World:
    """Samplers that die over some chunks, and with them whatever else they have in hand."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly, self.most_at_once, self.runs = deadly, 0, dict[str, int]()

    def sampler(self) -> SimpleNamespace:
        died, in_hand = asyncio.Event(), set[str]()

        async def run(chunk: Chunk) -> None:
            in_hand.add(chunk.key)
            self.most_at_once = max(self.most_at_once, len(in_hand))
            self.runs[chunk.key] = self.runs.get(chunk.key, 0) + 1
            try:
                await asyncio.wait_for(died.wait(), 0.002)
            except TimeoutError:
                if chunk.key not in self.deadly:
                    return
                died.set()
            finally:
                in_hand.discard(chunk.key)
            raise ActorDiedError()

        async def load() -> None:
            await asyncio.sleep(0)

        return SimpleNamespace(run=SimpleNamespace(remote=run), load=SimpleNamespace(remote=load))


@pytest.mark.parametrize("in_hand", [1, 2])
@pytest.mark.parametrize("samplers", [1, 3])
def test_chunks_over_which_samplers_die_take_no_other_with_them(monkeypatch, tmp_path, in_hand, samplers):
    monkeypatch.setattr(queue_module, "_end", lambda sampler: None)
    chunks = chunks_of(GENERATOR, sampler(num_steps=4), "search", 20, 50)
    world = World({chunks[3].key, chunks[11].key})

    async def play() -> tuple[list[object], Queue]:
        crew = Crew(ask=Ask(what="sampling", count=samplers), device="cpu", in_hand=in_hand)
        queue = Queue(b"", str(tmp_path), crew)
        monkeypatch.setattr(queue, "_start", world.sampler)
        ends = await asyncio.gather(*[queue.ensure(chunk) for chunk in chunks], return_exceptions=True)
        for task in queue.running:
            task.cancel()
        return list(ends), queue

    ends, queue = asyncio.run(play())
    failed = [i for i, end in enumerate(ends) if isinstance(end, ChunkFailed)]
    assert failed == [3, 11] and all(end is True for i, end in enumerate(ends) if i not in failed)
    assert world.most_at_once == in_hand
    assert [world.runs[chunks[i].key] for i in failed] == [MAX_DEATHS] * 2
    # One that was in hand beside a deadly chunk is made alone from then on.
    assert max(count for key, count in world.runs.items() if key not in world.deadly) <= 2
    assert queue.counts["generated"] == 18 and not queue.under_way
