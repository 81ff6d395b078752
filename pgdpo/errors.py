"""The errors that a user can mend."""


class InputError(Exception):
    """Bad input: one message that names file, key or row, value, what is allowed and what to do.

    The command line prints the message alone and exits with code 2.
    """
