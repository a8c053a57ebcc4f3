"""What can be wrong with one image."""


class CorruptImageError(Exception):
    """An image that cannot be decoded, or to nothing certain; the message is the reason."""


class MisfitError(ValueError):
    """An image that does not go with the first one or with the settings.

    Args:
        problem: What is wrong; lacks its subject.
        remedy: Settings of training that help.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
