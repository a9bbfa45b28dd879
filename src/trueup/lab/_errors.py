"""The error of everything that breaks the lab's protocol."""


class StudyError(ValueError):
    """A study that breaks the lab's protocol; the message says which rule and how to mend it."""
