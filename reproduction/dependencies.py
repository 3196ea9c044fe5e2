"""Versions and licences of the dependencies: ``python -m reproduction.dependencies lock`` or ``audit``.

``lock`` prints the installed versions of what ``kegnet_pl[dev]`` needs, directly or not. ``audit`` prints their
licences, and known vulnerabilities where pip-audit is installed and reaches its database.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = "kegnet_pl[dev]"


def find_dependencies(root: str = _ROOT) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that a requirement needs, directly or not, by name; without its own."""
    found: dict[str, metadata.Distribution] = {}
    waiting, seen = [Requirement(root)], set()
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue
        found[key[0]] = distribution
        for text in distribution.requires or []:
            requirement = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *wanted.extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in extras):
                waiting.append(requirement)
    found.pop(canonicalize_name(Requirement(root).name), None)
    return dict(sorted(found.items()))


def find_licence(distribution: metadata.Distribution) -> str:
    """Return the licence that a distribution states: the SPDX expression, its classifiers, or a short text."""
    about = distribution.metadata
    if expression := (about.get_all("License-Expression") or [""])[0]:
        return str(expression)
    names = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    text = str((about.get_all("License") or [""])[0]).strip()
    return ", ".join(names) or (text if text and "\n" not in text and len(text) < 60 else "not stated")


def lock() -> str:
    """Return a constraints file: a line for each dependency, without local labels such as ``+cpu``."""
    lines = [f"{name}=={one.version.partition('+')[0]}" for name, one in find_dependencies().items()]
    version = ".".join(map(str, sys.version_info[:2]))
    return "\n".join([f"# Versions with Python {version} on {sys.platform}: make lock.", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lock or the audit; return 1 if pip-audit finds a vulnerability."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["lock", "audit"])
    if parser.parse_args(arguments).task == "lock":
        sys.stdout.write(f"{lock()}\n")
        return 0
    for name, distribution in find_dependencies().items():
        sys.stdout.write(f"{name:<32} {distribution.version:<16} {find_licence(distribution)}\n")
    if importlib.util.find_spec("pip_audit") is None:
        sys.stdout.write("\nVulnerabilities were not checked: pip install pip-audit.\n")
        return 0
    done = subprocess.run([sys.executable, "-m", "pip_audit", "--local"], capture_output=True, text=True)
    found = "vulnerabilit" in done.stderr and done.returncode == 1
    if found or done.returncode == 0:
        sys.stdout.write(f"\n{done.stdout}{done.stderr}")
        return int(found)
    sys.stdout.write(f"\nVulnerabilities were not checked: pip-audit failed. {done.stderr.strip().splitlines()[-1:]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
