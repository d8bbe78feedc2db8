"""The one exception that is the user's to mend."""


class UserError(Exception):
    """Bad input, told in one sentence: the field, what was found, what was expected.

    The command line prints it without a traceback and exits with status 2.
    """
