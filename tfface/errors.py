"""The one error that a person causes and can mend."""


class UserError(Exception):
    """Bad input, said in one line: what happened, what was expected, what was received, how to mend it.

    The command line prints the message without a traceback and exits with code 2; in Python it is an ordinary
    exception. Programming errors stay `ValueError` and `TypeError`.
    """
