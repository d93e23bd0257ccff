"""Packages that a figure is measured with, where they are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def package_version(package: str) -> str | None:
    """Its version as installed, or None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


HAS_K2 = is_installed("k2")
