"""The one thing that pyproject.toml cannot say: tune_spaces/ is packed into the wheel as edm_ray/tune_spaces."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["edm_ray*"]), "edm_ray.tune_spaces"],
    package_dir={"edm_ray.tune_spaces": "tune_spaces"},
)
