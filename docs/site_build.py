"""What mkdocs.yml adds to MkDocs: links that leave docs/, and the roles and formulas of docstrings."""

import inspect
import posixpath
import re
from pkgutil import resolve_name
from typing import Any

import griffe
from latex2mathml.converter import convert

LINK_UPWARDS = re.compile(r"\[([^\]\[]+)\]\((\.\./[\w./-]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Show the path in place of a link to a file outside docs/: the site does not know where the repository is."""

    def path_of(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[2]))
        if not target.startswith("../"):
            return link[0]
        path = target.removeprefix("../")
        return f"`{path}`" if link[1].strip("`").rstrip("/") in path else f"{link[1]} (`{path}`)"

    return LINK_UPWARDS.sub(path_of, markdown)


class RolesOfDocstrings(griffe.Extension):
    """reStructuredText's roles in Markdown: formulas as MathML, which needs no script, and names as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object, before its docstring is parsed."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if "{metrics}" in text:  # filled in when the class is made
            text = inspect.getdoc(resolve_name(obj.path)) or text
        text = re.sub(r"^\.\. math:: (.+)$", lambda math: convert(math[1], display="block"), text, flags=re.M)
        text = re.sub(r":math:`([^`]+)`", lambda math: convert(math[1]), text)
        text = re.sub(r":(?:class|data|func|meth|mod):`~?([^`]+)`", r"`\1`", text)
        obj.docstring.value = text.replace("``", "`")
