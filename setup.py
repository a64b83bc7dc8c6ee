"""Packages are found: those below src/, and conf/ and experiments/ as `metagradient.conf` and `metagradient.experiments`."""

from setuptools import find_packages, setup

PLACES = {"metagradient.conf": "conf", "metagradient.experiments": "experiments"}

packages = find_packages("src")
for name, folder in PLACES.items():
    packages += [name, *(f"{name}.{inner}" for inner in find_packages(folder))]

setup(packages=packages, package_dir={"metagradient": "src/metagradient", **PLACES})
