"""The files of cluster/ with their capital words filled in, by the script that the READMEs use."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from edm_ray.cli.job import JOB_COMMANDS

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILLED = {
    "REGISTRY": "registry.example.org/team",
    "BUCKET": "edm-bucket",
    "ACCOUNT": "123456789012",
    "REGION": "eu-west-1",
    "SECURITY_GROUP": "sg-0123456789abcdef0",
    "SUBNET": "subnet-0123456789abcdef0",
    "AMI": "ami-0123456789abcdef0",
}


@functools.cache
def filled(path: Path) -> str:
    script = [str(CLUSTER / "fill.sh"), str(path)]
    return subprocess.run(
        script, env={"PATH": os.environ["PATH"], **FILLED}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def documents(*folders: str) -> list[tuple[str, dict[str, Any]]]:
    """(file and kind, document) of every YAML document below these folders of cluster/."""
    found = []
    for folder in folders:
        for path in sorted((CLUSTER / folder).glob("*.yaml")):
            for document in yaml.safe_load_all(filled(path)):
                found.append((f"{folder}/{path.name}:{document.get('kind', '')}", document))
    return found


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod specs of a Kubernetes document, wherever they are."""
    found: list[dict[str, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("containers"), list):
                found.append(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    return found


def entrypoints() -> list[tuple[str, str]]:
    """(where, command) of every edm-ray command that a manifest or README runs on a cluster."""
    found = [
        (name, document["spec"]["entrypoint"])
        for name, document in documents("kuberay")
        if document["kind"] == "RayJob"
    ]
    commands = "|".join(JOB_COMMANDS)
    for path in [*sorted(CLUSTER.rglob("*.md")), CLUSTER / "sky" / "train-and-sweep.yaml"]:
        text = re.sub(r"\\\n\s*", " ", filled(path))
        for match in re.finditer(rf"edm-ray (?:submit [^`\n]*?-- )?((?:{commands}) -?[^`\n]*)", text):
            found.append((str(path.relative_to(ROOT)), match.group(1).split(" #")[0].strip()))
    return found
