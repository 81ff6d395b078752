"""The errors that a user can mend, and the stop that a user asked for."""

INTERRUPTED, TERMINATED = 130, 143  # exit codes, as a shell has them: 128 + SIGINT, 128 + SIGTERM


class InputError(Exception):
    """Bad input: one message that names file, key or row, value, what is allowed and what to do.

    The command line prints the message alone and exits with code 2.
    """


class MachineError(InputError):
    """Input that this machine cannot take, and another one may."""


class Stopped(Exception):
    """A signal asked the run to stop: all ranks did, and saved. The command line exits with `code`."""

    def __init__(self, message: str, code: int = TERMINATED) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    """Ctrl-C where there is nothing to save. The command line says so in a line and exits with code 130."""


def reason_of(error: Exception) -> str:
    """What a library's error says, without its number and file."""
    return getattr(error, "strerror", None) or str(error)
