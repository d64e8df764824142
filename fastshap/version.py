"""The version, read by the build and by the outputs."""

__version__ = "0.1.0"
