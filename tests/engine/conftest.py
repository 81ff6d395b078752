"""Figures of these tests for `benchmarks/runs/matrix.py`."""

import json
import os

import pytest


@pytest.fixture
def figures():
    """`figures(key, value)`: appended as a line to the file that MATRIX_JSONL names, where it is set."""

    def record(key: str, value: dict) -> None:
        path = os.environ.get("MATRIX_JSONL")
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({key: value}) + "\n")

    return record
