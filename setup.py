"""Packaging: the top-level packages under the names the project gives them. Metadata lives in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(exclude=["benchmarks*", "docs*", "examples*", "tests*"]),
    package_data={"proofs": ["page.md"]},
)
