"""The one exception of this package."""


class DataError(ValueError):
    """Data on disk, or an argument about data, that cannot be used.

    The message is always one line, names the cause (expected, got) and the fix, and is fit to be shown to a user
    without a traceback.

    Args:
        message: Cause and fix; line breaks (in a file name, or in a wrapped error) become spaces.
    """

    def __init__(self, message: str) -> None:
        one_line = " ".join(message.splitlines())
        # File names may hold bytes that are no valid text; printing them as they are would raise in turn.
        super().__init__(one_line.encode("utf-8", "backslashreplace").decode("utf-8"))
