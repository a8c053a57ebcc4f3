"""The sentences of docs/troubleshooting.md are sentences of the code."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

QUOTED = re.findall(r"^> (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.M)
GAP = "…"


def text_of(node: ast.expr) -> str:
    """What an expression says, with a gap for what depends on the case."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return GAP


def sentences() -> Iterator[str]:
    """All texts in the code, long ones put together."""
    for path in (ROOT / "ddpm_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp):
                yield text_of(node)


SAID = {sentence for sentence in sentences() if len(sentence) > 15}


def is_said(quoted: str) -> bool:
    """Whether one text of the code has all parts of a quoted sentence, in order, and nothing but gaps between them."""
    pattern = ".{0,100}?".join(re.escape(part) for part in quoted.split(GAP))
    return any(re.search(pattern, sentence, flags=re.S) for sentence in SAID)


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_code_says_it(quoted: str) -> None:
    assert max(map(len, quoted.split(GAP))) > 15, "too little of it to know it by"
    assert is_said(quoted)


def test_another_sentence_is_not_found() -> None:
    assert not is_said("… sets …, which is no setting at all")
    assert not is_said("the nearest one is … sets …, which is no setting")


def test_each_kind_of_trouble_is_there() -> None:
    assert len(QUOTED) == len(set(QUOTED)) >= 40
