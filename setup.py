"""
For tools that look for this file. The metadata is in C{pyproject.toml}.
"""

from setuptools import setup

setup()
