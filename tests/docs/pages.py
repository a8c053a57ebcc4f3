"""The pages that people read, and the code in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A block of code between fences.

    Args:
        line: Number of its first line in the page.
        code: What it holds.
        not_run: The reason that the comment above it has, such as `<!-- not run: it takes hours -->`; else None.
    """

    line: int
    code: str
    not_run: str | None


def name_of(page: Path) -> str:
    """For test ids."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path, language: str) -> Iterator[Block]:
    """The blocks of a page that are of one language, from top to bottom."""
    text = page.read_text()
    fence = rf"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```{language}\n(?P<code>.*?)^```$"
    for found in re.finditer(fence, text, flags=re.M | re.S):
        yield Block(text[: found.start("code")].count("\n") + 1, found["code"], found["reason"])
