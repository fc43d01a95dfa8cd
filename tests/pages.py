"""Pages of the documentation that tests follow literally: their files and their commands."""

import os
import re
import runpy
import shlex
import sys

from var_toolkit.cli import main

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([a-z_]+\.(?:py|yaml))`")


def files_of(text: str) -> dict[str, str]:
    """Every block of Python or YAML of a page, by the last file name in the text before it."""
    found, before = {}, 0
    for block in BLOCK.finditer(text):
        if block[1] in ("python", "yaml"):
            name = NAMED.findall(text[before : block.start()])[-1]
            assert name not in found, f"{name} appears twice"
            found[name] = block[2]
        before = block.end()
    return found


def commands_of(text: str) -> list[str]:
    """The commands of a page, in order."""
    return [line for language, block in BLOCK.findall(text) if language == "sh" for line in block.splitlines()]


def here(command: str, capsys) -> str:
    """The output of a command of the page, run in this process, which saves the import of torch."""
    program, *words = shlex.split(command)
    if program == "python":
        sys.path.insert(0, os.getcwd())  # as Python does for the folder of a script
        runpy.run_path(*words, run_name="__main__")
    else:
        assert program == "vargen"
        assert main(words) == 0, f"{command}\n{capsys.readouterr().err}"
    return capsys.readouterr().out
