"""Every manifest is well-formed: Ray's own schema for `ray up`, ours (schemas.py) for the rest."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from tests.cluster.manifests import CLUSTER, documents, filled
from tests.cluster.schemas import KINDS, SKY

KUBERNETES = documents("kuberay")
RAY_SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.fixture
def ray_up():
    return yaml.safe_load(filled(CLUSTER / "ray-up" / "aws.yaml"))


@pytest.mark.parametrize(("name", "document"), KUBERNETES, ids=[name for name, _ in KUBERNETES])
def test_kubernetes_manifests_have_only_known_fields(name, document):
    jsonschema.validate(document, KINDS[document["kind"]])


def test_every_kind_is_there():
    assert {document["kind"] for _, document in KUBERNETES} == set(KINDS)
    jobs = {document["metadata"]["name"] for _, document in KUBERNETES if document["kind"] == "RayJob"}
    assert jobs == {"edm-prepare", "edm-train", "edm-reference", "edm-evaluate", "edm-sweep"}


def test_ray_up_passes_ray_s_own_schema_and_preparation(ray_up):
    """As `ray up` reads it: the schema, then the defaults of the provider and the checks on node types."""
    from ray.autoscaler._private.util import validate_config

    jsonschema.validate(ray_up, RAY_SCHEMA)
    defaults = yaml.safe_load((Path(ray.__file__).parent / "autoscaler" / "aws" / "defaults.yaml").read_text())
    whole = {**defaults, **ray_up}
    validate_config(whole)
    assert sum(node.get("max_workers", 0) for node in ray_up["available_node_types"].values()) <= ray_up["max_workers"]


def test_sky_task_has_only_known_fields():
    jsonschema.validate(yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml")), SKY)


def _broken(document, *path, value=None):
    """The document with one value replaced, or with a key misspelt when no value is given."""
    changed = copy.deepcopy(document)
    *parents, last = path
    level = changed
    for key in parents:
        level = level[key]
    if value is None:
        level[f"{last}x"] = level.pop(last)
    else:
        level[last] = value
    return changed


def test_the_schemas_catch_misspelt_and_mistyped_fields(ray_up):
    """A check of the checks."""
    cluster = next(document for _, document in KUBERNETES if document["kind"] == "RayCluster")
    head = ("spec", "headGroupSpec", "template", "spec", "containers", 0)
    for broken in (
        _broken(cluster, "spec", "enableInTreeAutoscaling"),
        _broken(cluster, "spec", "workerGroupSpecs", 0, "maxReplicas", value="8"),
        _broken(cluster, "spec", "headGroupSpec", "rayStartParams", "num-cpus", value=0),
        _broken(cluster, *head, "livenessProbe"),
        _broken(cluster, *head, "resources", "limits", "memory", value="8GB"),
        _broken(cluster, *head, "securityContext"),
        _broken(cluster, "metadata", "name", value="Edm"),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, KINDS["RayCluster"])
    policy = next(document for _, document in KUBERNETES if document["kind"] == "NetworkPolicy")
    for broken in (_broken(policy, "spec", "policyTypes"), _broken(policy, "spec", "ingress", 0, "from")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, KINDS["NetworkPolicy"])
    for broken in (
        _broken(ray_up, "available_node_types", "gpu-spot", "max_workers"),
        _broken(ray_up, "idle_timeout_minutes"),
        _broken(ray_up, "docker", "image"),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, RAY_SCHEMA)
