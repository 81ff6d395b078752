"""The errors that a user can mend, and the stop that a user asked for."""


class InputError(Exception):
    """Bad input: one message that names file, key or row, value, what is allowed and what to do.

    The command line prints the message alone and exits with code 2.
    """


class MachineError(InputError):
    """Input that this machine cannot take, and another one may."""


class Stopped(Exception):
    """A signal asked the run to stop: all ranks did, and saved. The command line exits with code 143."""
