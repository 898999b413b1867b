"""What is refused before anything is submitted; no Ray runs here."""

from __future__ import annotations

import http.server
import json
import runpy
import sys
import threading
from pathlib import Path

import pytest

from edm_ray.cli import main
from edm_ray.cli.job import check_places, parse, run_job
from edm_ray.distributed.cluster import job_checks
from edm_ray.errors import InputError

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train --data data/x --out s3://b/run", "--data data/x"),
        ("train --data s3://b/x --out runs/x", "--out runs/x"),
        ("train --data s3://b/x --out ~/run", "--out ~/run"),
        ("prepare digits data/digits", "DEST data/digits"),
        ("prepare photos s3://b/x", "SOURCE photos"),
        ("evaluate --model m --reference s3://b/r --out s3://b/e", "--model m"),
        ("sweep --model /m --reference r --space tune_spaces/digits.yaml --out /o", "--reference r"),
        ("generate --model /m --out samples.png", "--out samples.png"),
        ("reference --data /d --out /r --weights w.pth", "--weights w.pth"),
        ("doctor --storage runs", "--storage runs"),
    ],
)
def test_a_relative_place_is_refused_with_the_fix(command, named, capsys):
    """By `edm-ray submit`, and in the job itself, which `ray job submit` may have started."""
    assert main(["submit", "--address", "http://127.0.0.1:9", "--", *command.split()]) == 2
    error = capsys.readouterr().err
    assert named in error and "s3://" in error and "that all nodes share" in error
    assert run_job(command.split()) == 2
    assert named in capsys.readouterr().err


def test_absolute_places_uris_and_built_in_sources_are_taken(tmp_path):
    for command in (
        "train --data /shared/x --out s3://b/run",
        "prepare digits /shared/digits",
        "prepare s3://b/photos s3://b/data",
        "train --data file:///x --out /y",
    ):
        check_places(*parse(command.split()), tmp_path)


def test_a_small_file_must_lie_in_the_working_directory_to_travel(tmp_path):
    command = "sweep --model /m --reference /r --out /o --space tune_spaces/digits.yaml"
    name, args = parse(command.split())
    with pytest.raises(InputError, match="cannot travel"):
        check_places(name, args, tmp_path)
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "digits.yaml").write_text("")
    check_places(name, args, tmp_path)


def test_a_wrong_option_is_refused_here_and_not_on_the_cluster(capsys):
    with pytest.raises(SystemExit):
        main(["submit", "--address", "http://127.0.0.1:9", "--", "train", "--dat", "/x", "--out", "/y"])
    assert "--dat" in "".join(capsys.readouterr())
    assert main(["submit", "--", "trian", "--data", "/x"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_submit_takes_one_request_at_a_time(capsys):
    for arguments in ([], ["--list", "--stop", "x"], ["--list", "--", "train", "--data", "/x", "--out", "/y"]):
        assert main(["submit", *arguments]) == 2
        assert "give one of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prepare", "train", "reference", "generate", "evaluate", "sweep"])
def test_every_job_script_is_short_and_refuses_relative_places(name, monkeypatch, capsys):
    script = JOBS / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 25
    arguments = {
        "prepare": "digits here",
        "train": "--data d --out /o",
        "reference": "--data d --out /o",
        "generate": "--model m --out /o",
        "evaluate": "--model m --reference /r --out /o",
        "sweep": "--model m --reference /r --out /o --space x.yaml",
    }[name]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2 and "relative" in capsys.readouterr().err


def test_a_working_directory_above_50_mib_is_refused_and_its_largest_files_named(tmp_path):
    from edm_ray.distributed.cluster.job_checks import check_upload

    (tmp_path / "code.py").write_text("x = 1\n")
    for name, mib in (("big.bin", 40), ("bigger.bin", 45), (".git/objects.pack", 200), (".venv/lib.so", 200)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as handle:
            handle.truncate(mib << 20)
    with pytest.raises(InputError, match=r"85\.0 MiB.*at most 50.*bigger\.bin \(45\.0 MiB\), big\.bin \(40\.0 MiB\)"):
        check_upload(tmp_path)
    (tmp_path / ".rayignore").write_text("*.bin\n")
    assert check_upload(tmp_path) < 100
    with pytest.raises(InputError, match="no such directory"):
        check_upload(tmp_path / "nothing")


def test_this_repository_is_small_enough_to_travel():
    from edm_ray.distributed.cluster.job_checks import upload_sizes

    sizes = upload_sizes(JOBS.parent)
    assert sum(size for size, _ in sizes) < 10 << 20, sizes[:5]
    names = {name for _, name in sizes}
    assert {"jobs/train.py", "edm_ray/cli/job.py", "tune_spaces/cifar10.yaml"} <= names
    assert not any(name.startswith((".git/", ".venv/", "demo/", "runs/")) for name in names)


@pytest.mark.parametrize(
    "pair",
    [
        *(
            "PGPASS=x",
            "PGPASSWORD=x",
            "PGPASSFILE=x",
            "GITHUB_PAT=x",
            "STRIPE_KEY=x",
            "KEY=x",
            "SSH_KEY_FILE=x",
            "DB_PWD=x",
        ),
        *("my_apikey=x", "WANDB_API_KEY=x", "MYSQL_PASS=x", "SENTRY_DSN=x", "AWS_ACCESS_KEY_ID=x"),
        *(
            "URL=postgres://user:hunter2@db/x",
            "PROXY=http://:pw@proxy:3128",
            "A=AKIAIOSFODNN7EXAMPLE",
            "B=ASIAIOSFODNN7EXAMPLE",
        ),
        *("C=ghp_0123456789abcdefghij", "D=hf_abcdefghijklmnop", "E=-----BEGIN RSA PRIVATE KEY-----"),
        "F=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x",
    ],
)
def test_what_looks_like_a_secret_by_name_or_value_is_refused_and_not_repeated(pair):
    name, _, value = pair.partition("=")
    with pytest.raises(InputError, match="looks like a secret") as caught:
        job_checks.job_variables([pair])
    assert name in str(caught.value) and (len(value) < 2 or value not in str(caught.value))


@pytest.mark.parametrize(
    "pair", ["OMP_NUM_THREADS=1", "KEYBOARD=x", "COMPASS_X=1", "MONKEY=1", "DATA=s3://bucket/a:b/c@d", "PATH=/bin:/usr"]
)
def test_plain_variables_travel(pair):
    assert job_checks.job_variables([pair]) == dict([pair.split("=", 1)])


def test_secrets_do_not_travel_as_variables():
    from edm_ray.distributed.cluster.job_checks import job_variables

    assert job_variables(["AWS_REGION=eu-west-1", "X=a=b"]) == {"AWS_REGION": "eu-west-1", "X": "a=b"}
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password", "AWS_ACCESS_KEY_ID"):
        with pytest.raises(InputError, match="looks like a secret") as caught:
            job_variables([f"{name}=canary"])
        assert "canary" not in str(caught.value)
    with pytest.raises(InputError, match="NAME=VALUE") as caught:
        job_variables(["=canary"])
    assert "canary" not in str(caught.value)


def test_a_cluster_beyond_this_machine_needs_a_token(monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert main(["submit", "--address", "http://203.0.113.7:8265", "--list"]) == 2
    error = capsys.readouterr().err
    assert "RAY_AUTH_MODE=token" in error and "ssh -L" in error


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265", True),
        ("http://[::1]:8265", True),
        ("http://127.9.9.9:1", True),
        ("http://10.0.0.1:8265", False),
        ("http://0.0.0.0:8265", False),
        ("https://head.example.org", False),
        ("http://localhost.example.org:8265", False),
        ("http://127.0.0.1.example.org:8265", False),
    ],
)
def test_only_loopback_is_this_machine(address, local):
    from edm_ray.distributed.cluster.job_checks import is_loopback

    assert is_loopback(address) is local


def test_addresses_that_are_no_job_api_are_refused(monkeypatch):
    from edm_ray.distributed.cluster.job_checks import find_address

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert find_address(None) == "http://127.0.0.1:8265"
    for bad in ("head:8265", "ray://head:10001", "http://", "ftp://head"):
        with pytest.raises(InputError, match="http://HOST:8265"):
            find_address(bad)
    with pytest.raises(InputError, match="credentials") as caught:
        find_address("http://user:canary@head:8265")
    assert "canary" not in str(caught.value)


class _OpenCluster(http.server.BaseHTTPRequestHandler):
    """Answers everyone, as a cluster without authentication does."""

    def do_GET(self):
        body = json.dumps([]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_cluster_that_answers_without_a_token_is_refused_though_we_have_one(monkeypatch):
    """The check asks the cluster itself: a token on this side protects nothing there."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OpenCluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(job_checks, "is_loopback", lambda _: False)
    monkeypatch.setattr(job_checks, "sends_token", lambda: True)
    try:
        with pytest.raises(InputError, match="to anyone, without a token"):
            job_checks.require_authentication(address, insecure=False)
        job_checks.require_authentication(address, insecure=True)
    finally:
        server.shutdown()
        server.server_close()


class _ClosedCluster(_OpenCluster):
    """Asks for a token."""

    def do_GET(self):
        self.send_error(401)


def test_a_token_that_would_travel_in_the_clear_is_reported(monkeypatch, caplog):

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _ClosedCluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(job_checks, "sends_token", lambda: True)
    try:
        job_checks.require_authentication(address, insecure=False)
        assert not caplog.text, "nobody else reads the loopback"
        monkeypatch.setattr(job_checks, "is_loopback", lambda _: False)
        job_checks.require_authentication(address, insecure=False)
        assert "in the clear" in caplog.text and "tunnel" in caplog.text
    finally:
        server.shutdown()
        server.server_close()


def test_the_doctor_of_a_cluster_sends_code_and_nothing_else_of_the_current_directory(tmp_path, monkeypatch):
    from edm_ray.cli import doctor, submit

    sent = []

    def note(args):
        sent.append(sorted(path.name for path in Path(args.working_dir).iterdir()))
        return 0

    monkeypatch.setattr(submit, "run", note)
    (tmp_path / "holiday.mkv").write_bytes(b"much")
    monkeypatch.chdir(tmp_path)
    assert doctor.run(doctor.Args(address="http://127.0.0.1:9")) == 0
    monkeypatch.chdir(Path(__file__).parents[2])
    assert doctor.run(doctor.Args(address="http://127.0.0.1:9")) == 0
    assert sent[0] == [] and "edm_ray" in sent[1]


def test_a_stopped_or_failed_job_never_counts_as_done():
    from ray.job_submission import JobDetails, JobStatus, JobType

    from edm_ray.distributed.cluster.jobs import outcome_of

    def code(status, driver=None):
        details = JobDetails(type=JobType.SUBMISSION, status=status, entrypoint="x", driver_exit_code=driver)
        return outcome_of(details).code

    assert code(JobStatus.SUCCEEDED, 0) == 0 and code(JobStatus.STOPPED) == 143
    assert code(JobStatus.FAILED, 2) == 2 and code(JobStatus.FAILED) == 1 and code(JobStatus.FAILED, 0) == 1
    assert code(JobStatus.FAILED, -9) == 1
