"""Triton's interpreter without work that nothing comes of: the kernels compute the same in a fraction of the time."""

import dataclasses
import functools
import importlib.util


def speed_up_interpreter() -> None:
    """Patch this process's interpreter. Versions of Triton that do these things otherwise are left as they are."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope"):
        _patch_language_once(interpreter)
    options = getattr(getattr(interpreter, "interpreter_builder", None), "options", None)
    # The condition that no integer overflows is computed in int64 for every addition, and asserted in debug mode alone.
    if not getattr(options, "debug", True) and hasattr(options, "sanitize_overflow"):
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


def _patch_language_once(interpreter) -> None:
    """Let a launch patch `triton.language` once, and not again for every call of a device function in it.

    The interpreter puts its own functions into `triton.language` for the length of a launch, and does so anew at each
    call of a function that the kernel calls, where it walks over all members and finds none that is left to patch.
    """
    import triton.language as tl

    @functools.cache
    def languages(function) -> list:
        """The modules that the function sees and `_patch_lang` patches."""
        return [module for module in (tl, tl.core) if any(module is v for v in function.__globals__.values())]

    def patch_if_not_yet(function):
        whole = any(tl.core.is_builtin(module.load) for module in languages(function))
        return patch(function) if whole else interpreter._LangPatchScope()

    patch, interpreter._patch_lang = interpreter._patch_lang, patch_if_not_yet
