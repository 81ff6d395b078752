"""Image transformers, a file for each that shares blocks."""
