"""What these tests use of hypothesis, where it is not installed: their examples, and seeded draws. Nothing is shrunk.

A GPU is met on machines that have torch, Triton, NumPy and pytest alone.
"""

from __future__ import annotations

import functools
import inspect
import random
import types
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    draw: Callable[[random.Random], object]

    def __or__(self, other: Strategy) -> Strategy:
        return Strategy(lambda rng: rng.choice((self, other)).draw(rng))


@dataclass(frozen=True)
class Data:
    rng: random.Random

    def draw(self, strategy: Strategy) -> object:
        return strategy.draw(self.rng)


def fixed_dictionaries(values: dict[str, Strategy]) -> Strategy:
    return Strategy(lambda rng: {name: value.draw(rng) for name, value in values.items()})


def lists(element: Strategy, *, min_size: int, max_size: int) -> Strategy:
    return Strategy(lambda rng: [element.draw(rng) for _ in range(rng.randint(min_size, max_size))])


strategies = types.ModuleType("hypothesis.strategies")
strategies.integers = lambda low, high: Strategy(lambda rng: rng.choice((low, high, rng.randint(low, high))))
strategies.booleans = lambda: Strategy(lambda rng: rng.random() < 0.5)
strategies.none = lambda: Strategy(lambda rng: None)
strategies.sampled_from = lambda values: Strategy(lambda rng: rng.choice(values))
strategies.data = lambda: Strategy(Data)
strategies.fixed_dictionaries = fixed_dictionaries
strategies.lists = lists


class HealthCheck:
    function_scoped_fixture = None


def settings(*, max_examples: int, **_: object) -> Callable:
    return lambda test: _set(test, max_examples=max_examples)


def example(**arguments: object) -> Callable:
    return lambda test: _set(test, examples=[arguments, *getattr(test, "examples", [])])


def _set(test: Callable, **attributes: object) -> Callable:
    for name, value in attributes.items():
        setattr(test, name, value)
    return test


def given(*positional: Strategy, **named: Strategy) -> Callable:
    """Like hypothesis: positional strategies fill the last parameters, pytest's fixtures the others."""

    def decorate(test: Callable) -> Callable:
        parameters = list(inspect.signature(test).parameters.values())
        last = [parameter.name for parameter in parameters[len(parameters) - len(positional) :]]
        drawn = dict(zip(last, positional, strict=True)) | named

        @functools.wraps(test)
        def run(**fixtures: object) -> None:
            rng = random.Random(test.__qualname__)
            cases = list(getattr(run, "examples", []))
            for _ in range(getattr(run, "max_examples", 10)):
                cases.append({name: strategy.draw(rng) for name, strategy in drawn.items()})
            for case in cases:
                try:
                    test(**fixtures, **case)
                except Exception as error:
                    raise AssertionError(f"with {case}: {error}") from error

        run.__signature__ = inspect.Signature([p for p in parameters if p.name not in drawn])
        return run

    return decorate
