"""Start Ray Train again where it gave up, as long as the run makes progress.

Ray Train counts failures over the whole run, so that a long one would end at the fourth; here they count as long as
there is no new checkpoint. And its controller is a process that may fail or be killed too (ControllerError).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import ray
import ray.train

from edm_ray.distributed.ray_private import remove_placement_groups
from edm_ray.distributed.session import is_own_local_ray
from edm_ray.errors import InputError
from edm_ray.models.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def free_what_a_dead_controller_held() -> None:
    """In a Ray that this command started for itself; on a cluster Ray Train frees it by way of the dashboard."""
    if is_own_local_ray():
        remove_placement_groups()


def fit_with_retries(
    fit: Callable[[], Result],
    store: CheckpointStore,
    max_failures: int,
    free: Callable[[], None] = free_what_a_dead_controller_held,
) -> Result:
    """What ``fit`` returns; called again, to resume from the newest checkpoint, where Ray Train gave up.

    ``max_failures`` is what Ray Train got too: how often workers may fail within one call of ``fit``. The call may fail
    as often without a new checkpoint in between. ``free`` is called after a controller was killed. Raises InputError,
    with the workers' own words, for what the user must change, and Ray's error when the failures are too many.
    """
    idle = 0
    while True:
        before = store.committed()[-1:]
        try:
            return fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            if (wrong := input_error_in(error)) is not None:
                raise wrong from error
            idle = 0 if store.committed()[-1:] != before else idle + 1
            # Workers have failed max_failures times within this call already.
            if max_failures == 0 or idle > (0 if isinstance(error, ray.train.WorkerGroupError) else max_failures):
                raise
            if isinstance(error, ray.exceptions.RayActorError):
                free()
            logger.warning("%s; starting it again", _what_happened(error))


def _what_happened(error: Exception) -> str:
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "the connection to Ray Train's controller broke"
    why = str(error).strip().splitlines()[-1:] or [""]
    return f"Ray Train gave up ({type(error).__name__}: {why[0]:.120})"


def input_error_in(error: Exception) -> InputError | None:
    """A worker's own message, when one failed for a wrong input."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, InputError):
            return InputError(str(cause))
    return None
