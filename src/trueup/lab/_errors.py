"""The error for everything that breaks the lab's protocol."""


class StudyError(ValueError):
    """A study breaks the lab's protocol; the message says which rule, and how to fix it."""
