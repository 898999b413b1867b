"""Workers of a pool that are there and do nothing, with stand-ins for them: what is decided, without Ray."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed import dispatcher as dispatching
from edm_ray.distributed.cluster.preflight import WorkerRequest
from edm_ray.distributed.dispatcher import Dispatcher, PoolSpec
from edm_ray.distributed.news import News
from edm_ray.distributed.patience import Patience, TimeBound, patience_here
from edm_ray.distributed.watched import Job, Waiting
from edm_ray.errors import InputError
from edm_ray.evaluation.chunks import Generator, chunks_of
from edm_ray.execution.executor import work_of
from tests.distributed.test_dispatcher import actor

GENERATOR = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
QUICK = Patience(silent_s=0.4, factor=5.0, first_s=60.0)


class Stuck:
    """Workers that are numbered as they start; what some of them do with some chunk is said by ``acts``.

    acts: (worker, chunk) -> "stop" (answers nothing any more), "hang" (answers, and never ends), seconds.
    """

    def __init__(self, acts: dict) -> None:
        self.acts, self.started, self.runs = acts, 0, Counter()
        self.killed: dict[int, asyncio.Event] = {}

    def start(self) -> SimpleNamespace:
        number, killed, stopped = self.started, asyncio.Event(), asyncio.Event()
        self.started += 1

        async def until_killed() -> None:
            await killed.wait()
            raise ActorDiedError()

        async def hello() -> tuple[str, int]:
            if stopped.is_set() or killed.is_set():
                await until_killed()
            return "node-a", 100 + number

        async def load() -> None:
            await asyncio.sleep(0)

        async def make(item) -> None:
            place = item[0].first // 50
            self.runs[place] += 1
            act = self.acts.get((number, place), 0.01)
            if act == "stop":
                stopped.set()
            if isinstance(act, str):
                await until_killed()
            dead = asyncio.ensure_future(killed.wait())
            await asyncio.wait([dead], timeout=act)
            if killed.is_set():
                raise ActorDiedError()

        found = actor(hello=hello, load=load, make=make)
        found.end = killed.set
        return found


def _play(monkeypatch, world: Stuck, workers: int, count: int = 8, patience: Patience = QUICK, in_hand: int = 1):
    """(what each call returned, dispatcher, lines told, seconds)."""
    monkeypatch.setattr(dispatching, "_end", lambda worker: worker.end())
    told: list[str] = []

    async def play():
        ask = WorkerRequest(what="sampling", count=workers)
        spec = PoolSpec(ask=ask, device="cpu", slots=workers, stuck=patience, patience=0.4, in_hand=in_hand)
        dispatcher = Dispatcher(b"", spec)
        dispatcher.recipe = SimpleNamespace(is_stored=lambda artifact: False)
        dispatcher.tell = told.append
        monkeypatch.setattr(dispatcher, "_start", world.start)
        began = time.monotonic()
        calls = [dispatcher.ensure(chunk) for chunk in chunks_of(GENERATOR, sampler(num_steps=4), "search", count, 50)]
        ends = await asyncio.wait_for(asyncio.gather(*calls), 20)
        took = time.monotonic() - began
        for task in dispatcher.running:
            task.cancel()
        await asyncio.sleep(0)
        return ends, dispatcher, told, took

    return asyncio.run(play())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_worker_is_named_and_replaced_and_its_chunk_made_by_another(monkeypatch, workers):
    world = Stuck({(0, 3): "stop", (1, 3): "stop" if workers == 2 else 0.01})
    ends, dispatcher, told, _ = _play(monkeypatch, world, workers)
    assert ends == [True] * 8 and dispatcher.counts["made"] == 8, "each counts once"
    assert dispatcher.counts["stuck"] == len(told) >= 1 and world.started == workers + len(told)
    assert "sampling: the worker on node-a, process 10" in told[0] and "has not answered since" in told[0]
    assert "it is replaced, and chunk" in told[0] and "seeds 150..199" in told[0]


def test_a_chunk_that_takes_much_longer_than_others_did_is_made_by_another_and_counts_once(monkeypatch):
    world = Stuck({(0, 6): "hang"})
    ends, dispatcher, told, took = _play(monkeypatch, world, 2)
    if world.runs[6] == 1:  # the other worker took it: play the other way round
        ends, dispatcher, told, took = _play(monkeypatch, world := Stuck({(1, 6): "hang"}), 2)
    assert ends == [True] * 8 and dispatcher.counts["made"] == 8 and world.runs[6] == 2
    assert dispatcher.counts["late"] == 1 and dispatcher.counts["stuck"] == 0
    assert "under way since" in told[0] and "the slowest of the last 7 took 0.0 s" in told[0]
    assert "was made by another meanwhile; this one is replaced" in told[1]
    assert took < 15


def test_a_late_chunk_with_no_other_worker_ends_with_a_new_one(monkeypatch):
    world = Stuck({(0, 6): "hang"})
    ends, dispatcher, told, _ = _play(monkeypatch, world, 1)
    assert ends == [True] * 8 and dispatcher.counts["made"] == 8 and world.started == 2
    assert "handed to another" in told[0] and "nobody made it; it is replaced" in told[1]


def test_a_slow_chunk_that_ends_after_all_is_learnt_and_costs_nobody_his_place(monkeypatch):
    """It is handed out again when it is late; who began it first is first: nobody is replaced."""
    world = Stuck({(0, 7): 1.0, (1, 7): 1.0})
    ends, dispatcher, told, _ = _play(monkeypatch, world, 2)
    assert ends == [True] * 8 and dispatcher.counts["made"] == 8 and world.started == 2
    assert max(dispatcher.bound.rates) * dispatcher_work() > 0.9 and len(told) == 1


def dispatcher_work() -> float:
    return work_of((chunks_of(GENERATOR, sampler(num_steps=4), "search", 1, 50)[0],))


def test_a_worker_with_two_chunks_in_hand_is_not_handed_its_late_one_again(monkeypatch):
    world = Stuck({(0, 6): "hang"})
    ends, dispatcher, _, _ = _play(monkeypatch, world, 1, in_hand=2)
    assert ends == [True] * 8 and dispatcher.counts["made"] == 8 and world.runs[6] == 2


def test_a_bound_is_learnt_by_size_and_follows_the_slowest():
    bound = TimeBound(Patience(silent_s=10.0, factor=10.0, first_s=600.0))
    assert bound.of(5.0) == 600.0 and bound.usual() == ""
    for seconds, work in ((1.0, 100.0), (4.0, 200.0), (1.0, 100.0)):
        bound.learn(seconds, work)
    assert bound.of(1000.0) == pytest.approx(10 * 0.02 * 1000)
    assert bound.of(1.0) == 15.0, "nothing is late before the least"
    assert bound.of(1000.0, first=True) == pytest.approx(300.0)
    assert bound.usual(200.0) == "the slowest of the last 3 took 4.0 s"


def test_work_of_a_chunk_is_its_evaluations_and_decides_no_key():
    few, many = (chunks_of(GENERATOR, sampler(num_steps=steps), "search", 1, 50)[0] for steps in (4, 8))
    assert work_of((few,)) == 50 * 7 and work_of((many, many)) == 2 * 50 * 15
    assert "work" not in few.identity


def test_patience_is_settable_and_wrong_values_are_refused(monkeypatch):
    assert patience_here().silent_s == 45.0 and Patience().restart_s == 720.0
    monkeypatch.setenv("EDM_RAY_SILENT_S", "12.5")
    monkeypatch.setenv("EDM_RAY_RESTART_S", "90")
    monkeypatch.setenv("EDM_RAY_LATE_FACTOR", "3")
    found = patience_here()
    assert (found.silent_s, found.restart_s, found.factor) == (12.5, 90.0, 3.0)
    assert found.collective_s > max(found.first_s, found.restart_s), "who watches acts first"
    for name, value in (("EDM_RAY_SILENT_S", "soon"), ("EDM_RAY_SILENT_S", "0"), ("EDM_RAY_LATE_FACTOR", "1")):
        with monkeypatch.context() as wrong, pytest.raises(InputError, match=f"{name}={value} is not allowed"):
            wrong.setenv(name, value)
            patience_here()


def test_a_restart_waits_longer_than_storage_is_waited_for(monkeypatch):
    monkeypatch.setenv("EDM_RAY_STORAGE_PATIENCE_S", "3600")
    assert patience_here().restart_s == 3720.0


def test_jobs_wait_once_each_and_late_ones_come_first():
    async def play() -> None:
        loop, waiting = asyncio.get_running_loop(), Waiting()
        jobs = [Job((SimpleNamespace(),), loop.create_future()) for _ in range(3)]
        for job in (*jobs, jobs[1]):
            waiting.put_nowait(job)
        assert waiting.qsize() == 3 and await waiting.get() is jobs[0]
        jobs[0].late = True
        waiting.put_nowait(jobs[0])
        assert [await waiting.get(), await waiting.get({jobs[1]})] == [jobs[0], jobs[2]]
        nobody = asyncio.create_task(waiting.get({jobs[1]}))
        await asyncio.sleep(0.01)
        assert not nobody.done() and await waiting.get() is jobs[1]
        waiting.put_nowait(jobs[2])
        assert await nobody is jobs[2]

    asyncio.run(play())


def test_news_are_told_once_and_again_after_the_process_began_anew(monkeypatch):
    monkeypatch.setattr("edm_ray.distributed.news.ASK_S", 0.05)

    async def play() -> None:
        news = News()
        life, seen, lines = await news.after("", 0)
        assert lines == []
        waiting = asyncio.create_task(news.after(life, seen))
        await asyncio.sleep(0)
        news.add("one")
        life, seen, lines = await waiting
        assert lines == ["one"] and (await news.after(life, seen))[2] == []
        again = News()
        again.add("two")
        assert (await again.after(life, seen))[2] == ["two"]

    asyncio.run(play())
