"""Everything about the package is declared in pyproject.toml; installing needs neither a compiler nor the network."""

from setuptools import setup

setup()
