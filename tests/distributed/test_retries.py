"""What a training does where Ray Train gives up. No cluster: Ray Train's `fit` is a function that fails."""

from __future__ import annotations

import logging

import pytest
import ray
import torch
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from edm_ray.distributed.retries import fit_with_retries
from edm_ray.errors import InputError
from edm_ray.models.checkpoints import CheckpointStore

WORKERS = WorkerGroupError("a worker was killed", {1: RuntimeError("killed")})
CONTROLLER = ControllerError(RuntimeError("placement group lost"))
KILLED = ray.exceptions.RayActorError(error_msg="the controller died")


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path))


def _fit(store: CheckpointStore, *attempts: tuple[bool, Exception | str]):
    """Each attempt: whether it makes a new checkpoint, and what it ends with."""
    script = list(attempts)

    def fit():
        new, end = script.pop(0)
        if new:
            images = max(store.committed(), default=0) + 24
            store.save(images, {"model": {"w": torch.zeros(1)}}, {})
        if isinstance(end, Exception):
            raise end
        return end

    fit.left = script
    return fit


def test_failures_with_a_checkpoint_in_between_are_retried_without_end(store, caplog):
    """Of a controller that was killed, what it held is removed before the next begins."""
    ends, freed = [(True, (WORKERS, CONTROLLER, KILLED)[i % 3]) for i in range(9)], []
    with caplog.at_level(logging.WARNING):
        assert fit_with_retries(_fit(store, *ends, (False, "done")), store, 3, lambda: freed.append(1)) == "done"
    assert len(freed) == 3
    assert caplog.text.count("starting it again") == 9 and "placement group lost" in caplog.text


def test_a_broken_connection_is_said_in_words(store, caplog):
    error = ray.exceptions.ActorUnavailableError("The actor 63fb37c4 is unavailable: RpcError", None)
    with caplog.at_level(logging.WARNING):
        assert fit_with_retries(_fit(store, (True, error), (False, "done")), store, 3, lambda: None) == "done"
    (line,) = caplog.messages
    assert line == "the connection to Ray Train's controller broke; starting it again"


def test_a_controller_that_fails_without_any_new_checkpoint_is_tried_as_often_as_workers_are(store):
    fit = _fit(store, *[(False, CONTROLLER)] * 3, (False, "done"))
    assert fit_with_retries(fit, store, 3) == "done"
    fit = _fit(store, *[(False, KILLED)] * 9)
    with pytest.raises(ray.exceptions.RayActorError):
        fit_with_retries(fit, store, 3, lambda: None)
    assert len(fit.left) == 5


def test_workers_that_ray_train_has_started_again_often_enough_without_a_new_checkpoint_are_given_up(store):
    fit = _fit(store, (True, WORKERS), (False, WORKERS), (False, "never"))
    with pytest.raises(TrainingFailedError, match="a worker was killed"):
        fit_with_retries(fit, store, 3)
    assert len(fit.left) == 1


def test_nothing_is_retried_where_no_failure_is_allowed(store):
    with pytest.raises(TrainingFailedError):
        fit_with_retries(_fit(store, (True, WORKERS)), store, 0)


def test_what_the_user_must_change_ends_at_once_with_the_workers_own_words(store):
    error = WorkerGroupError("long text", {0: RuntimeError("gloo"), 1: InputError("data: no such shard")})
    with pytest.raises(InputError, match="data: no such shard"):
        fit_with_retries(_fit(store, (True, error)), store, 3)
