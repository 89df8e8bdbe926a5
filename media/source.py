"""The error of a source that holds no usable video or image."""


class BadSource(ValueError):
    """A source that cannot be used; the message says why, in words for the report."""
