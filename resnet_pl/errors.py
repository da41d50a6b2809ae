"""Errors a user can cause, said in a line or two."""


class UserError(Exception):
    """Something the user can put right.

    The message says what is wrong, where (file, key or value) and the way out, in at most two lines;
    the command line prints it without a traceback and ends with exit code 2.
    """


class Diverged(UserError):
    """Training that has gone wrong; its state is not worth keeping."""
