"""What a group of training workers takes of the cluster, and what Ray Train is told of it. No Ray runs here."""

from __future__ import annotations

from edm_ray.distributed.group import NEVER_S, Group


def test_a_group_asks_for_gpus_or_cpus_and_tells_ray_train_the_same():
    cuda = Group(least=2, most=2, device="cuda", threads=4)
    request, scaling = cuda.request(), cuda.scaling()
    assert (request.count, request.gpus, request.cpus, request.fits({"GPU": 2.0})) == (2, 1.0, 0.0, 2)
    assert scaling.use_gpu and scaling.num_workers == 2 and scaling.resources_per_worker == {"GPU": 1}
    assert Group(least=1, most=4, device="cuda", threads=4).scaling().resources_per_worker == {"GPU": 1}
    cpu = Group(least=2, most=2, threads=4).scaling()
    assert not cpu.use_gpu and cpu.resources_per_worker == {"CPU": 4}


def test_an_elastic_group_needs_its_least_and_ray_train_never_resizes_it_by_itself():
    group = Group(least=2, most=8)
    assert group.elastic and group.request().needed == 2 and not Group(least=2, most=2).elastic
    assert group.scaling().num_workers == (2, 8) and group.scaling().elastic_resize_monitor_interval_s == NEVER_S
