"""Base class of errors that a user can fix; used by all packages and caught by the CLI."""


class UserError(ValueError):
    """Error that the user can fix: its one-line message states what was given, what was expected
    and what to do.

    The command line prints it as `error: ...` and exits with status 1; any other exception is a
    bug.
    """
