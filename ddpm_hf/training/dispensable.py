"""What a run can do without, and therefore never ends for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

Errors = type[Exception] | tuple[type[Exception], ...]


class Dispensable:
    """Lets parts of a run fail, such as pictures and trackers, and tells it of each part once.

    Args:
        tells: Whether this process is the one that tells.
    """

    def __init__(self, tells: bool) -> None:
        self._tells = tells
        self._told: set[str] = set()

    @contextmanager
    def part(self, name: str, errors: Errors = OSError) -> Iterator[None]:
        """Within the context such errors end nothing but the context.

        Args:
            name: What is lost, for the note.
            errors: What may fail.
        """
        try:
            yield
        except errors as error:
            if self._tells and name not in self._told:
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"Note: the run goes on without {name}: {reason}.", file=sys.stderr, flush=True)
            self._told.add(name)
