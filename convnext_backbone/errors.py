"""The one kind of error that is the user's to put right."""


class UserError(Exception):
    """Wrong input: the message says in one line what was given, what was expected and what to do.

    The command line tools print it without a traceback and exit with status 1.
    """


class UnreadableImage(UserError):
    """A file of the dataset is missing, cut off or no image."""
