"""The dispatchers of pools that are open together, in one process: each process that imports torch takes seconds of CPU
and hundreds of megabytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from edm_ray.distributed.dispatcher import Dispatcher, PoolSpec
from edm_ray.distributed.news import News


class Dispatchers:
    """One actor. Pools are told apart by their place."""

    def __init__(self, recipes: Sequence[bytes], specs: Sequence[PoolSpec]) -> None:
        """recipes: the pickled references to them that the pools' owner holds."""
        self.each = [Dispatcher(recipe, spec) for recipe, spec in zip(recipes, specs, strict=True)]
        self.told = News()
        for dispatcher in self.each:
            dispatcher.wake, dispatcher.tell = self.begin, self.told.add

    async def begin(self) -> None:
        """Ask for the workers of all pools: those of one get ready while those of another work. Nobody is asked for as
        long as nothing is missing."""
        for dispatcher in self.each:
            await dispatcher.begin()

    async def ensure(self, place: int, *item: Any) -> bool:
        """As `Dispatcher.ensure`."""
        return await self.each[place].ensure(*item)

    async def answer(self, request: Any, *wanted: Any) -> Any:
        """For callers who know plain values only: have the items that ``request.steps(recipes, *wanted)`` names for
        each pool in the store, those of one pool after those of the pool before it. Returns
        ``request.answer(recipes, steps, made)``, where ``made`` says of each whether it was made for this call."""
        recipes = await asyncio.to_thread(lambda: [dispatcher.recipe for dispatcher in self.each])
        steps = request.steps(recipes, *wanted)
        made = [
            await asyncio.gather(*[dispatcher.ensure(*item) for item in items])
            for dispatcher, items in zip(self.each, steps, strict=True)
        ]
        return await asyncio.to_thread(request.answer, recipes, steps, made)

    async def news(self, life: str, seen: int) -> tuple[str, int, list[str]]:
        """As `News.after`."""
        return await self.told.after(life, seen)

    async def hush(self) -> None:
        """Whoever waits for news gets what there is, now."""
        self.told.changed.set()

    async def status(self, place: int) -> dict[str, int]:
        return await self.each[place].status()

    async def worker_pids(self, place: int) -> list[int]:
        return await self.each[place].worker_pids()
