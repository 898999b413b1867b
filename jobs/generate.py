"""`edm-ray generate` as a Ray job: `ray job submit --working-dir . -- python jobs/generate.py ...`; same options.

Give absolute paths or s3:// URIs for data and results: a job runs in an unpacked copy of the working directory.
"""

import sys

from edm_ray.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job(["generate", *sys.argv[1:]]))
