"""The version of this package, for what a run writes down."""

__version__ = "0.1.0"
