"""The version, read by the build and by the outputs."""

__version__ = "0.2.0"
