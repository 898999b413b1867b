"""`edm-ray submit` where there is no clone: the installed package travels, and tune spaces are known by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edm_ray.cli.job import check_places, parse
from edm_ray.distributed.cluster.jobs import PACKAGE, submit
from edm_ray.errors import InputError
from edm_ray.search import shipped
from tests.jobs.heads import REPOSITORY, running_head

SWEEP = ["sweep", "--model", "/m", "--reference", "/r", "--out", "/o", "--space", "digits"]


class Client:
    """Takes jobs and starts none."""

    def __init__(self) -> None:
        self.given: dict[str, object] = {}

    def list_jobs(self) -> list[SimpleNamespace]:
        return []

    def submit_job(self, **given: object) -> str:
        self.given = given
        return "raysubmit_1"


def environment_of(working_dir: Path) -> dict[str, object]:
    client = Client()
    submit(client, ["train"], working_dir, "/out", {})  # type: ignore[arg-type]
    environment = client.given["runtime_env"]
    assert isinstance(environment, dict)
    return environment


def test_the_package_travels_unless_the_working_directory_is_a_clone(tmp_path):
    outside = environment_of(tmp_path)
    assert outside["py_modules"] == [str(PACKAGE)] and (PACKAGE / "cli" / "job.py").is_file()
    assert outside["working_dir"] == str(tmp_path) and "__pycache__" in outside["excludes"]
    assert "py_modules" not in environment_of(REPOSITORY), "its own code is what the job runs"


def test_a_space_by_name_need_not_lie_in_the_working_directory_where_it_travels_otherwise(tmp_path, monkeypatch):
    name, args = parse(SWEEP)
    check_places(name, args, REPOSITORY)
    with pytest.raises(InputError, match="cannot travel"):
        check_places(name, args, tmp_path)  # the spaces of a clone lie beside the package, which travels alone
    packed = tmp_path / "site-packages" / "edm_ray"
    (packed / "tune_spaces").mkdir(parents=True)
    (packed / "tune_spaces" / "digits.yaml").write_text("")
    monkeypatch.setattr(shipped, "PACKAGE", packed)
    check_places(name, args, tmp_path)
    with pytest.raises(InputError, match="cannot travel"):
        check_places(*parse([*SWEEP[:-1], "digit"]), tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_submitted_from_an_empty_folder_runs_the_package_of_here(tmp_path):
    """The package is in the job's environment, whatever the node has."""
    empty, out = tmp_path / "empty", tmp_path / "data"
    empty.mkdir()
    with running_head(tmp_path / "head") as head:
        command = [sys.executable, "-m", "edm_ray", "submit", "--address", head.address, "--", "prepare", "digits"]
        variables = {**head.environment, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [*command, str(out)], cwd=empty, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        [job] = head.get("/api/jobs/")
        assert job["status"] == "SUCCEEDED" and job["runtime_env"]["py_modules"][0].startswith("gcs://")
    assert (out / "train" / "manifest.json").is_file() and not list(empty.iterdir())
