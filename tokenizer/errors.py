"""The one family of errors that a user can mend; every package stands on it, the CLI catches it."""


class UserError(ValueError):
    """A mistake the user can mend: its one line says what was got, what was wanted, what to do.

    The command line prints it as `error: ...` and exits 1; any other exception is our bug.
    """
