"""What every manifest must keep to: nothing open to the world, no keys, a token, limits, pinned images, no root."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, ROOT, documents, entrypoints, filled, pods

KUBERNETES = documents("kuberay")
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
PODS = [(name, pod) for name, document in KUBERNETES for pod in pods(document)]
PINNED = re.compile(r"^\S+(:[\w][\w.-]*\d[\w.-]*|@sha256:[0-9a-f]{64})$")


@pytest.fixture
def ray_cluster():
    return next(document for _, document in KUBERNETES if document["kind"] == "RayCluster")


@pytest.fixture
def ray_up():
    return yaml.safe_load(filled(CLUSTER / "ray-up" / "aws.yaml"))


def test_no_file_holds_key_material():
    """Access keys, private keys, tokens, or a secret's value."""
    patterns = (
        r"AKIA[0-9A-Z]{16}",
        r"-----BEGIN [A-Z ]*PRIVATE KEY",
        r"(?i)aws_secret_access_key\s*[:=]\s*\S",
        r"(?i)(auth_token|password|secret_key)\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16,}",
        r"eyJ[A-Za-z0-9_-]{20,}\.",
    )
    for path in FILES:
        for pattern in patterns:
            assert not re.search(pattern, path.read_text()), (path, pattern)
    for name, document in KUBERNETES:
        assert document["kind"] != "Secret", name


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pods_run_without_root_with_limits_and_pinned_images(name, pod):
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
    assert security["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod.get("volumes", []):
        assert "hostPath" not in volume and volume["emptyDir"].get("sizeLimit"), volume
    for container in pod["containers"]:
        assert PINNED.match(container["image"]), container["image"]
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["capabilities"]["drop"] == ["ALL"]
        resources = container["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= resources[kind].keys()
        assert resources["requests"]["memory"] == resources["limits"]["memory"] or container["name"] == "submitter"


def test_pinned_means_a_version_and_not_latest():
    for good in ("r/x:0.1.0-cpu", "r.example.org:5000/x:2.60.0", f"r/x@sha256:{'a' * 64}"):
        assert PINNED.match(good), good
    for bad in ("r/x", "r/x:latest", "r.example.org:5000/x", "r/x:nightly"):
        assert not PINNED.match(bad), bad


def test_the_token_is_on_everywhere(ray_cluster, ray_up):
    assert ray_cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "edm-token"}
    readme = (CLUSTER / "kuberay" / "README.md").read_text()
    assert "create secret generic edm-token --from-literal=auth_token=$(openssl rand -hex 32)" in readme
    asked = [entry["valueFrom"]["secretKeyRef"] for _, pod in PODS for c in pod["containers"] for entry in c["env"]
             if entry["name"] == "RAY_AUTH_TOKEN"]  # fmt: skip
    assert asked and all(each == {"name": "edm-token", "key": "auth_token"} for each in asked)
    for name, pod in PODS:
        for container in pod["containers"]:
            modes = [entry["value"] for entry in container["env"] if entry["name"] == "RAY_AUTH_MODE"]
            assert modes == ["token"], name
            for entry in container["env"]:
                assert entry["name"] != "RAY_AUTH_TOKEN" or "value" not in entry, name
    for command in (*ray_up["head_start_ray_commands"], *ray_up["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command, command
    sky = yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml"))
    assert sky["envs"]["RAY_AUTH_MODE"] == "token" and sky["secrets"] == {"RAY_AUTH_TOKEN": None}


def test_nothing_listens_to_the_world(ray_cluster, ray_up):
    head = ray_cluster["spec"]["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP" and head["enableIngress"] is False
    assert not {document["kind"] for _, document in KUBERNETES} & {"Ingress", "Service", "Gateway", "HTTPRoute"}
    assert "--dashboard-host=127.0.0.1" in " ".join(ray_up["head_start_ray_commands"])
    for name, node in ray_up["available_node_types"].items():
        # Without its own group, `ray up` makes one that lets the whole world try ssh.
        assert node["node_config"]["SecurityGroupIds"], name
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert "security_group" not in ray_up["provider"]
    sky = yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml"))
    assert "ports" not in sky["resources"] and "--dashboard-host=127.0.0.1" in sky["run"]
    readme = (CLUSTER / "ray-up" / "README.md").read_text()
    assert "--cidr" in readme and not re.search(r"--cidr\s+0\.0\.0\.0/0", readme)


def test_the_network_policy_lets_in_its_own_pods_the_operator_and_submitters():
    policies = [document for _, document in KUBERNETES if document["kind"] == "NetworkPolicy"]
    assert len(policies) == 1
    spec = policies[0]["spec"]
    assert spec["podSelector"] == {} and sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    for rule in spec["ingress"]:
        for peer in rule["from"]:
            assert peer.get("podSelector") or peer.get("namespaceSelector"), peer  # never everybody
            assert "ipBlock" not in peer
        if any("namespaceSelector" in peer for peer in rule["from"]):
            assert {entry["port"] for entry in rule["ports"]} <= {8265, 52365}
    for rule in spec["egress"]:
        for peer in rule["to"]:
            if block := peer.get("ipBlock"):
                assert "169.254.169.254/32" in block["except"]
                assert [entry["port"] for entry in rule["ports"]] == [443]


def test_every_selector_of_the_network_policy_is_a_label_that_somebody_sets():
    """A rule for pods that nobody labels so lets nobody in: the submitters would wait for ever."""
    policy = next(document for _, document in KUBERNETES if document["kind"] == "NetworkPolicy")
    wanted = [
        peer["podSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer
    ]
    # The operator puts the first on every pod of a RayCluster; what it puts on a RayJob's submitter is on the
    # Kubernetes Job, and not on its pods (KubeRay 1.5, createNewK8sJob).
    given = [{"ray.io/cluster": "edm"}]
    templates = {
        name: document["spec"]["submitterPodTemplate"] for name, document in KUBERNETES if document["kind"] == "RayJob"
    }
    for name, template in templates.items():
        labels = template["metadata"]["labels"]
        assert any(selector.items() <= labels.items() for selector in wanted), f"{name}: locked out"
        given.append(labels)
    for selector in wanted:
        assert any(selector.items() <= labels.items() for labels in given), f"nobody is {selector}"


def test_the_head_does_no_work_and_spot_workers_scale_from_zero(ray_cluster, ray_up):
    spec = ray_cluster["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and spec["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"gpu-spot", "cpu"}
    for group in groups.values():
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    spot = groups["gpu-spot"]["template"]["spec"]
    assert spot["nodeSelector"]["eks.amazonaws.com/capacityType"] == "SPOT"
    assert spot["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    types = ray_up["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and "--num-cpus=0" in " ".join(ray_up["head_start_ray_commands"])
    assert types["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu-spot"]["min_workers"] == 0 and ray_up["provider"]["cache_stopped_nodes"] is False


def test_the_capacity_that_jobs_are_told_is_what_the_groups_add_up_to(ray_cluster, ray_up):
    """EDM_RAY_MAX_GPUS and EDM_RAY_MAX_CPUS are written by hand beside the groups: they must not drift apart."""
    groups = ray_cluster["spec"]["workerGroupSpecs"]
    totals = {"CPUS": 0, "GPUS": 0}
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        totals["CPUS"] += group["maxReplicas"] * int(limits["cpu"])
        totals["GPUS"] += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    head = ray_cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    told = {entry["name"]: entry.get("value") for entry in head}
    assert told["EDM_RAY_MAX_CPUS"] == str(totals["CPUS"]) and told["EDM_RAY_MAX_GPUS"] == str(totals["GPUS"])
    types = ray_up["available_node_types"].values()
    command = " ".join(ray_up["head_start_ray_commands"])
    for kind in ("CPU", "GPU"):
        total = sum(node.get("max_workers", 0) * node["resources"].get(kind, 0) for node in types)
        assert f"EDM_RAY_MAX_{kind}S={total}" in command


def test_what_kuberay_itself_refuses(ray_cluster):
    """Rules of the operator's own validation, read in its source (1.5): a manifest that breaks one is never run."""
    spec = ray_cluster["spec"]
    version = tuple(int(part) for part in spec["rayVersion"].split("."))
    assert version >= (2, 52, 0)  # token mode
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert "labels" not in group["rayStartParams"]
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # autoscaler v2
    for name, document in KUBERNETES:
        if document["kind"] == "RayJob":
            job = document["spec"]
            assert job["clusterSelector"] == {"ray.io/cluster": ray_cluster["metadata"]["name"]}, name
            assert "ttlSecondsAfterFinished" not in job and "suspend" not in job, name
            # 1.5 deletes the cluster before it tries again (kuberay issue 4516); later ones refuse the two together.
            assert "backoffLimit" not in job, name


def test_every_manifest_speaks_of_one_ray_version(ray_cluster):
    import ray

    dockerfile = (CLUSTER / "docker" / "Dockerfile").read_text()
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert pinned == ray.__version__ == ray_cluster["spec"]["rayVersion"]
    assert set(re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)", dockerfile)) == {pinned}


def test_images_of_ray_up_and_sky_are_pinned_and_may_gain_no_rights(ray_up):
    sky = yaml.safe_load(filled(CLUSTER / "sky" / "train-and-sweep.yaml"))
    images = [ray_up["docker"]["image"], sky["resources"]["image_id"].removeprefix("docker:")]
    images += [node["docker"]["worker_image"] for node in ray_up["available_node_types"].values() if "docker" in node]
    assert len(images) == 3
    for image in images:
        assert PINNED.match(image), image
    assert "--security-opt no-new-privileges" in ray_up["docker"]["run_options"]
    assert not any("privileged" in option.split() for option in ray_up["docker"]["run_options"])


def test_the_work_of_every_job_is_done_by_workers_and_not_by_its_driver():
    """The driver of a job runs on the head, which has two CPUs: a job without --workers would be its work."""
    found = 0
    for where, command in entrypoints():
        words = command.replace("/opt/edm_ray/jobs/", "").replace(".py", "").split()
        name = next(word for word in words if word != "python")
        if name != "doctor" and "sky/README" not in where:  # there they run on one's own machine
            assert "--workers" in words, (where, command)
            found += 1
    assert found > 10


def test_the_image_is_pinned_has_no_root_user_and_no_secret():
    lines = [line.strip() for line in (CLUSTER / "docker" / "Dockerfile").read_text().splitlines()]
    bases = [line.split("=", 1)[1] for line in lines if line.startswith("ARG BASE=")]
    assert bases and all(PINNED.match(base) for base in bases)
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${BASE}"]
    assert [line.split()[1] for line in lines if line.startswith("USER")][-1] == "ray"
    assert not any(line.startswith("ADD") for line in lines)
    assert not any(re.match(r"(ENV|ARG)\s+\S*(KEY|SECRET|TOKEN|PASSWORD)\S*=(?!token)", line) for line in lines)
    installs = [line for line in lines if "pip install" in line]
    assert installs and all("-c /tmp/constraints.txt" in line for line in installs)
    for line in lines:
        if line.startswith("COPY"):
            for name in line.split()[2:-1]:
                assert (ROOT / name).exists(), name
    ignored = (CLUSTER / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "everything is left out, and only what is named goes in"
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]]
    assert not [name for name in copied if f"!{name}" not in ignored]


def test_roles_are_narrow():
    """The bucket alone, and only machines of this cluster may be ended."""
    bucket = json.loads(filled(CLUSTER / "ray-up" / "s3-policy.json"))
    for statement in bucket["Statement"]:
        actions = statement["Action"]
        assert statement["Resource"].startswith("arn:aws:s3:::edm-bucket") and "s3:*" not in actions
    head = json.loads(filled(CLUSTER / "ray-up" / "head-policy.json"))
    for statement in head["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert "*" not in actions and "ec2:*" not in actions and "iam:*" not in actions
        if any("Terminate" in action for action in actions):
            assert statement["Condition"]["StringEquals"] == {"ec2:ResourceTag/ray-cluster-name": "edm"}
        if "iam:PassRole" in actions:
            assert statement["Resource"].endswith(":role/edm-ray-worker")
    trust = json.loads((CLUSTER / "ray-up" / "trust.json").read_text())
    assert trust["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_no_token_or_key_is_tracked_by_git():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    for name in tracked:
        assert not re.search(r"(auth_token|\.pem|\.key|credentials|\.env)$", name), name


@pytest.mark.parametrize("folder", ["docker", "kuberay", "ray-up", "sky"])
def test_every_folder_says_how_to_get_from_nothing_to_a_sweep_and_what_it_costs(folder):
    text = (CLUSTER / folder / "README.md").read_text()
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", text, re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3
    for name in re.findall(r"cluster/[\w./-]+\.(?:ya?ml|json)", text):
        assert (ROOT / name).exists() or Path(name).name.startswith("my-"), name
    if folder != "docker":
        assert "assumed" in text and "prices.yaml" in text and "sweep" in text
