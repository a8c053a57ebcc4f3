"""Commands of shell scripts and of the running text, as lists of words. Nothing is run."""

import re
import shlex
from collections.abc import Iterator

SEPARATORS = "&|;<>"


def commands_of(script: str) -> Iterator[list[str]]:
    """The simple commands, without variables, redirections, and the commands that only start them (timeout, srun)."""
    variables = dict[str, str]()
    script = re.sub(r"\$\([^)]*\)", "VALUE", script.replace("\\\n", " "))
    for line in re.sub(r"<[\w' ]+>", "VALUE", script).splitlines():
        words = _words(re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line))
        for command in _between_separators(words):
            while command and re.match(r"\w+=", command[0]):
                name, _, value = command.pop(0).partition("=")
                variables[name] = value
            command = _without_wrapper(command)
            if command[-3:-1] == ["bash", "-c"]:
                yield from commands_of(command[-1])
            elif command:
                yield command


def commands_in_text(page: str) -> Iterator[list[str]]:
    """Those between backticks, such as `ddpm-hf-sample --seed 1`, with `...` for a value or for further settings."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    for code in re.findall(r"`([^`]+)`", text):
        if re.match(r"accelerate launch .*(train_accelerate|cli)|ddpm-hf-\w+ |python -m |pip install ", code):
            command = _without_redirection(_words(code.replace("\n", " ")))
            pairs = zip(["", *command], command)
            values = ("1" if word == "..." else word for before, word in pairs if word != "..." or before[:2] == "--")
            yield list(values)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=SEPARATORS)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def _between_separators(words: list[str]) -> Iterator[list[str]]:
    command = list[str]()
    for word in [*words, ";"]:
        if word.strip(SEPARATORS) or word[0] in "<>":
            command.append(word)
        else:
            yield _without_redirection(command)
            command = []


def _without_redirection(command: list[str]) -> list[str]:
    end = next((i for i, word in enumerate(command) if word[0] in "<>"), len(command))
    return command[:end]


def _without_wrapper(command: list[str]) -> list[str]:
    if command[:1] == ["export"]:
        return []
    if command[:1] == ["timeout"]:  # --signal NAME TIME
        return command[4:]
    if command[:1] == ["srun"]:
        return command[next(i for i, word in enumerate(command) if i and not word.startswith("-")) :]
    return command
