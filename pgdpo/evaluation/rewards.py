"""Reward functions: (uint8 frames [F, H, W, 3], prompt) -> numbers, `total` among them.

One that has a parameter `sound` is given the clip's too, where the model makes some (`pgdpo.video.Sound`, else None).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pgdpo.config import Config
from pgdpo.diffusion.streams import AUDIO
from pgdpo.files.atomic import sha256_of
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import shown
from pgdpo.toy.reward import true_reward
from pgdpo.video import Sound

MOST_NAMES = 20  # of functions, in a message
Reward = Callable[..., dict[str, float]]  # (frames, prompt, sound or None)
TRIED_RATE = 16000  # of the sound that a reward is tried on, samples a second


def toy(frames: np.ndarray, prompt: str, sound: Sound | None) -> dict[str, float]:
    """The toy world's true reward, measured from pixels, and from the tone where there is one."""
    return {
        name: float(value)
        for name, value in asdict(true_reward(frames, prompt, *([] if sound is None else [sound]))).items()
    }


def open_reward(name: str | None) -> Reward | None:
    """`toy`, or `package.module:function` of an installed package; None for None.

    Opening one imports its module, which runs the package's code; a line says so. A configuration from elsewhere must
    not run a file that lies beside it: modules of no installed distribution are refused. Raises InputError naming what
    is wrong, also for whatever the module raises when it is imported.
    """
    if name is None:
        return None
    if name == "toy":
        return lambda frames, prompt, sound=None: _called(name, toy, frames, prompt, sound)
    module, colon, function = name.partition(":")
    if not colon or not function.isidentifier():
        raise InputError(f"evaluate.reward is {name!r}: expected `toy` or `package.module:function`")
    if module.split(".")[0] not in importlib.metadata.packages_distributions():
        raise InputError(
            f"evaluate.reward is {name!r}: no installed package holds `{module}`: pip install it (an editable "
            "install of your own will do)"
        )
    say_once(f"evaluate.reward: `{module}` is imported, which runs its code")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # it is the user's code: it may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"evaluate.reward is {name!r}: `{module}` cannot be imported ({reason}): mend the module, or name another"
        ) from error
    call = getattr(imported, function, None)
    if not callable(call):
        own = [key for key, value in vars(imported).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function, own)
        raise InputError(
            f"evaluate.reward is {name!r}: `{module}` has no function `{function}`; allowed are "
            f"{', '.join(near or own[:MOST_NAMES]) or 'none: it has no functions'}"
        )
    hears = _hears(call)
    return lambda frames, prompt, sound=None: _numbers(
        name, _called(name, call, frames, prompt, **({"sound": sound} if hears else {}))
    )


def _hears(call: Callable) -> bool:
    """Whether a function has a parameter `sound`; what is written in C may not say."""
    try:
        return "sound" in inspect.signature(call).parameters
    except ValueError:
        return False


def reward_source(name: str | None) -> str | None:
    """SHA-256 of the file that a reward's function is in, by which another version of it is known; None for `toy`."""
    module = None if name is None else sys.modules.get(name.partition(":")[0])
    path = Path(getattr(module, "__file__", None) or "")
    return sha256_of(path) if path.is_file() else None


def try_reward(config: Config, prompt: str) -> None:
    """Open `evaluate.reward` and call it once, on noise of the size of clips, silent where the model makes sound, so
    that it fails before anything is sampled; of what is not the toy's own a line says so.

    Raises InputError as opening and calling it do.
    """
    name = config.evaluate.reward
    reward = open_reward(name)
    if reward is None:
        return
    if name != "toy":
        say_once(f"evaluate.reward: `{name}` is called once, on noise, to see that it can be")
    noise = np.random.default_rng(0).integers(0, 256, (*config.data.sizes[0], 3), np.uint8)
    sound = None
    if AUDIO in config.model.streams:
        samples = round(len(noise) / config.written_fps * TRIED_RATE)
        channels = 1 if config.model.encoders == "toy" else 2
        sound = Sound(np.zeros((channels, samples), np.float32), TRIED_RATE)
    reward(noise, prompt, sound)


def _called(name: str, call: Callable, frames: np.ndarray, prompt: str, *sound: Sound | None, **heard) -> Any:
    try:
        return call(frames, prompt, *sound, **heard)
    except (Exception, SystemExit) as error:  # it is the user's code: it may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"evaluate.reward `{name}` failed ({reason}): it was called with {frames.dtype} frames "
            f"{list(frames.shape)} and the prompt {shown(prompt)}: mend the function, or name another"
        ) from error


def _numbers(name: str, value) -> dict[str, float]:
    parts = value if isinstance(value, dict) else {"total": value}
    try:
        numbers = {key: float(part) for key, part in parts.items()}
    except (TypeError, ValueError):
        numbers = {}
    if "total" not in numbers or not all(np.isfinite(list(numbers.values()))):
        raise InputError(
            f"evaluate.reward `{name}` returned {value!r}: expected a finite number, or a dict of them with `total`"
        )
    return numbers
