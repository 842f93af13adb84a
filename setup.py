"""
What yatxmilter is called, needs and installs.

All metadata is here; C{pyproject.toml} names the build system and holds the settings of the tools.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# The lowest that work: Twisted 22.10's own trial does not start on Python 3.12, and zope.interface
# follows each Python with a release; twisted.web needs cgi, which 3.13 does not have, before 24.3.
RUNTIME = [
    "twisted>=22.10.0; python_version < '3.12'",
    "twisted>=23.8.0; python_version == '3.12'",
    "twisted>=24.3.0; python_version >= '3.13'",
    "zope.interface>=5.5.0; python_version < '3.12'",
    "zope.interface>=6.1; python_version == '3.12'",
    "zope.interface>=7.1; python_version >= '3.13'",
]
# What examples need: DKIM, SPF and DMARC.
EXAMPLES = [
    "dkimpy>=1.1",
    "pyspf>=2.0.14",
    "dnspython>=2.4",
    "publicsuffixlist>=1.0",
    "authres>=1.2",
]
# The greylisting example keeps its state in these where several hosts share it.
STORES = ["psycopg2-binary>=2.9.10", "redis>=5.0.3"]
METRICS = ["prometheus-client>=0.19"]
# What Twisted's TLS needs.
TLS = ["pyopenssl>=23.2", "service-identity>=23.1"]
TEST = [
    "pytest>=7.4",
    "hypothesis>=6.80",
    "coverage[toml]>=7.10",
    "pyhamcrest",
    *EXAMPLES,
    *STORES,
    *METRICS,
    *TLS,
]
# Playwright opens the manual in a browser.
DOCS = ["sphinx>=7.2", "myst-parser>=2.0", "furo>=2023.9.10", "playwright>=1.40"]
LINT = ["ruff==0.17.6", "mypy>=1.10", "mypy-zope>=1.0.5"]

setup(
    name="yatxmilter",
    version="1.0.0",
    description="The milter protocol of Sendmail and Postfix for Twisted, with libmilter's API",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="GPL-2.0-only",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    install_requires=RUNTIME,
    extras_require={
        "testing": ["pytest>=7.4"],
        "metrics": METRICS,
        "serve": ["tomli>=2.0; python_version < '3.11'"],
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, *DOCS, *LINT],
    },
    packages=[*find_packages(include=["yatxmilter", "yatxmilter.*"]), "twisted.plugins"],
    package_data={"yatxmilter": ["py.typed"], "yatxmilter._cli": ["*.eml"]},
    zip_safe=False,
    py_modules=["pytest_yatxmilter"],
    entry_points={
        "console_scripts": ["yatxmilter=yatxmilter.__main__:main"],
        "pytest11": ["yatxmilter=pytest_yatxmilter"],
    },
    keywords=["milter", "libmilter", "postfix", "sendmail", "mail", "filter", "twisted"],
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Communications :: Email :: Filters",
        "Topic :: Communications :: Email :: Mail Transport Agents",
        "Typing :: Typed",
    ],
)
