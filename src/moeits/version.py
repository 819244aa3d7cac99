"""The version, here once: the package, artefacts and cards read it."""

__version__ = "0.1.0"
