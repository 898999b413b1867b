"""A training outlives Ray Train: its limits on failures over a whole run, and the death of its controller."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from edm_ray.errors import InputError
from edm_ray.models.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)


def remove_groups_of_a_local_ray() -> None:
    """A dead controller's workers keep their CPUs, as a placement group: Ray Train removes it by way of the dashboard,
    which the Ray that a command starts for itself does not have. There, all groups are this command's."""
    if os.environ.get("RAY_ADDRESS"):
        return
    for number, group in ray.util.placement_group_table().items():
        if group["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(number))))


def outlive(
    fit: Callable[[], Any],
    store: CheckpointStore,
    max_failures: int,
    bury: Callable[[], None] = remove_groups_of_a_local_ray,
) -> Any:
    """What ``fit`` returns, started again from the newest checkpoint where Ray Train gave up.

    Ray Train counts failures over the whole run, so that a long one would end at the fourth; here they count as long as
    there is no new checkpoint. And its controller is a process that may fail or be killed too (ControllerError); of
    one that was killed, ``bury`` removes what it held.
    """
    idle = 0
    while True:
        before = store.committed()[-1:]
        try:
            return fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            cause = cause_of(error)
            if isinstance(cause, InputError):
                raise cause from error
            idle = 0 if store.committed()[-1:] != before else idle + 1
            # Workers have failed max_failures times within this call already.
            if max_failures == 0 or idle > (0 if isinstance(error, ray.train.WorkerGroupError) else max_failures):
                raise
            if isinstance(error, ray.exceptions.RayActorError):
                bury()
            why = str(error).strip().splitlines()[-1:] or [""]
            logger.warning("Ray Train gave up (%s: %.120s); starting it again", type(error).__name__, why[0])


def cause_of(error: Exception) -> Exception:
    """The workers' own message when it is one for people (a wrong input), else Ray's error as it is."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, InputError):
            return InputError(str(cause))
    return error
