"""Whether the hub that models are looked up on can be reached, asked once before huggingface_hub asks; its bars."""

from __future__ import annotations

import functools
import threading

from pgdpo.messages.console import say

SECONDS = 5.0  # that a first answer may take


@functools.cache
def reach(model: str) -> None:
    """Ask once whether the hub answers; where it does not, no more is asked in this process.

    huggingface_hub asks six times for each file, half a minute in all, and says nothing. Offline it takes what it has
    stored, and so it does here. With HF_HUB_OFFLINE set nothing is asked. `model`: what is looked for.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    say(f"looking for {model} on {constants.ENDPOINT}, {SECONDS:g} s at most (not with HF_HUB_OFFLINE=1)")
    if not answers(constants.ENDPOINT):
        say(f"{constants.ENDPOINT} does not answer: what is stored on this machine is taken")
        constants.HF_HUB_OFFLINE = True


def answers(address: str) -> bool:
    """Whether anything does, within SECONDS.

    In a thread of its own: a name server that is silent, and an address after the other, keep to no time limit.
    """
    from huggingface_hub import get_session

    found = []

    def ask() -> None:
        try:
            found.append(get_session().head(address, timeout=SECONDS))
        except Exception:  # of requests, httpx or httpx2, as huggingface_hub's version has it
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return bool(found)


def silent() -> type:
    """A progress bar for huggingface_hub that shows nothing; ours goes to the terminal, its own to the log."""
    from tqdm.auto import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent
