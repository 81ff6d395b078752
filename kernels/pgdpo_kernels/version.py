"""The version of this package: its distribution reads it from here, without an import of torch."""

__version__ = "0.1.0"
