"""JSON schemas of the Kubernetes, KubeRay and SkyPilot fields that cluster/ uses, and of no others.

They are ours: written from the published API references (Kubernetes 1.28 core/v1 and networking/v1, KubeRay ray.io/v1,
SkyPilot's YAML specification), because the real ones need a cluster or a download. They catch misspelt and misplaced
fields and wrong types; they do not prove that an operator accepts a manifest.
"""

from __future__ import annotations

from typing import Any


def record(required: str = "", **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    properties = {name.replace("__", "."): schema for name, schema in fields.items()}
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def rows(item: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least}


def one_of(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
"""DNS-1035; KubeRay's own limit for a RayJob is 47 characters."""
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}

METADATA = record("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
SELECTOR = record("matchLabels", matchLabels=TEXTS)
RESOURCES = record("requests limits", requests=QUANTITIES, limits=QUANTITIES)
SECCOMP = record("type", type=one_of("RuntimeDefault"))
POD_SECURITY = record(
    "runAsNonRoot", runAsNonRoot=FLAG, runAsUser=NUMBER, runAsGroup=NUMBER, fsGroup=NUMBER, seccompProfile=SECCOMP
)
CONTAINER_SECURITY = record(
    "allowPrivilegeEscalation capabilities",
    allowPrivilegeEscalation=FLAG,
    capabilities=record("drop", drop=rows(TEXT)),
    readOnlyRootFilesystem=FLAG,
)
ENVIRONMENT = {
    "oneOf": [
        record("name value", name=TEXT, value={"type": "string"}),
        record(
            "name valueFrom",
            name=TEXT,
            valueFrom=record("secretKeyRef", secretKeyRef=record("name key", name=TEXT, key=TEXT)),
        ),
    ]
}
PROBE = record(
    "httpGet",
    httpGet=record("path port", path={"type": "string", "pattern": "^/"}, port=PORT),
    initialDelaySeconds=NUMBER,
    periodSeconds=NUMBER,
    timeoutSeconds=NUMBER,
    failureThreshold=NUMBER,
)
CONTAINER = record(
    "name image resources",
    name=NAME,
    image=TEXT,
    imagePullPolicy=one_of("IfNotPresent", "Always"),
    command=rows(TEXT),
    args=rows(TEXT),
    securityContext=CONTAINER_SECURITY,
    env=rows(ENVIRONMENT),
    ports=rows(record("containerPort", name=NAME, containerPort=PORT)),
    resources=RESOURCES,
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    volumeMounts=rows(record("name mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"})),
)
TOLERATION = record(
    "key operator", key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT, effect=one_of("NoSchedule", "NoExecute")
)
VOLUME = record("name emptyDir", name=NAME, emptyDir=record(medium=one_of("Memory"), sizeLimit=QUANTITY))
POD = record(
    "containers",
    serviceAccountName=NAME,
    restartPolicy=one_of("Never", "OnFailure", "Always"),
    terminationGracePeriodSeconds=NUMBER,
    securityContext=POD_SECURITY,
    nodeSelector=TEXTS,
    tolerations=rows(TOLERATION),
    containers=rows(CONTAINER),
    volumes=rows(VOLUME),
)
TEMPLATE = record("spec", metadata=record(labels=TEXTS, annotations=TEXTS), spec=POD)

AUTOSCALER = record(
    version=one_of("v1", "v2"),
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    idleTimeoutSeconds=NUMBER,
    resources=RESOURCES,
    securityContext=CONTAINER_SECURITY,
)
HEAD_GROUP = record(
    "template rayStartParams",
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    labels=TEXTS,
    template=TEMPLATE,
)
WORKER_GROUP = record(
    "groupName template rayStartParams",
    groupName=NAME,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    idleTimeoutSeconds=NUMBER,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
RAY_CLUSTER = record(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=record("mode", mode=one_of("token", "disabled"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=rows(WORKER_GROUP),
)
RAY_JOB = record(
    "entrypoint",
    entrypoint=TEXT,
    clusterSelector=TEXTS,
    rayClusterSpec=RAY_CLUSTER,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=NUMBER,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    runtimeEnvYAML=TEXT,
    submitterPodTemplate=TEMPLATE,
)
PEER = record(
    podSelector={"oneOf": [SELECTOR, record()]},
    namespaceSelector=SELECTOR,
    ipBlock=record("cidr", cidr=TEXT, **{"except": rows(TEXT)}),
)
PORTS = rows(record("protocol port", protocol=one_of("TCP", "UDP"), port=PORT))
NETWORK_POLICY = record(
    "podSelector policyTypes",
    podSelector={"oneOf": [SELECTOR, record()]},
    policyTypes=rows(one_of("Ingress", "Egress")),
    ingress=rows(record("from", **{"from": rows(PEER)}, ports=PORTS), 0),
    egress=rows(record("to", to=rows(PEER), ports=PORTS), 0),
)


def kubernetes(version: str, kind: str, **fields: Any) -> dict[str, Any]:
    return record(
        f"apiVersion kind metadata {' '.join(fields)}",
        apiVersion=one_of(version),
        kind=one_of(kind),
        metadata=METADATA,
        **fields,
    )


KINDS = {
    "Namespace": kubernetes("v1", "Namespace"),
    "ServiceAccount": kubernetes("v1", "ServiceAccount"),
    "NetworkPolicy": kubernetes("networking.k8s.io/v1", "NetworkPolicy", spec=NETWORK_POLICY),
    "RayCluster": kubernetes("ray.io/v1", "RayCluster", spec=RAY_CLUSTER),
    "RayJob": kubernetes("ray.io/v1", "RayJob", spec=RAY_JOB),
}

SKY = record(
    "resources run",
    name=NAME,
    num_nodes={"type": "integer", "minimum": 1},
    workdir=TEXT,
    resources=record(
        infra=TEXT,
        accelerators={"type": ["string", "object"]},
        cpus={"type": ["string", "integer"]},
        memory={"type": ["string", "integer"]},
        use_spot=FLAG,
        disk_size=NUMBER,
        image_id=TEXT,
        ports={"type": ["integer", "array"]},
        job_recovery=record(strategy=TEXT, max_restarts_on_errors=NUMBER),
    ),
    envs=TEXTS,
    secrets={"type": "object", "additionalProperties": {"type": "null"}},
    setup=TEXT,
    run=TEXT,
)
