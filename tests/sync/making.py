"""Makes `statewright/sync/client.py` out of the client for event loops: `python -m tests.sync.making`.

So both have the same calls, and a new one appears here by itself. A phrase of the documentation that speaks of an event
loop is put into the words of `PHRASES`; one of these that fits nothing any more is an error, as is a docstring that
still speaks of a loop.
"""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared" / "statewright"
SOURCE = SHARED / "client" / "client.py"
TARGET = SHARED / "sync" / "client.py"

Method = ast.FunctionDef | ast.AsyncFunctionDef

HEADER = '''"""The client for code without an event loop.

This file is made by `make sync` out of `statewright/client/client.py`, which is where to change it.
"""

{imports}


class Client(OpenedByUse):
    """{docstring}"""

    def __init__({parameters}) -> None:
        """{of_init}"""
        super().__init__(CrossingClient({arguments}))
'''

OWN_IMPORTS = """
from typing import cast
from statewright.sync.blocks import each, listed
from statewright.sync.crossing import CrossingClient
from statewright.sync.leases import Apart, Executor, KeepAlive
from statewright.sync.opening import OpenedByUse
from statewright.sync.sent import Sent, SentCreation, SentProposal, SentRun, under_way
from statewright.sync.subscription import NamedSubscription, Subscription, subscribed
"""

SENT = ("Sent", "SentRun", "SentCreation", "SentProposal")
BLOCKS = ("KeepAlive", "Executor")
SUBSCRIPTIONS = ("Subscription", "NamedSubscription")

PHRASES = {
    "Raises NotOpen before the client was opened.": "Raises NotOpen when the client is closed.",
    "await it for the answer": "its `answer()` waits for the answer",
    "nothing needs to be awaited in between": "nothing needs to be waited for in between",
    "A client belongs to the event loop and the process in which it was opened; a process that is forked off opens one"
    " of its own. While Redis is away, requests wait within the client.": "Any number of threads may use a client at"
    " once. It is opened by its `with`, or by its first use, and by that anew in each process that is forked off. It"
    " closes at the end of its `with`, by `close()`, or at the end of the interpreter. A thread in the background sends"
    " the requests; while Redis is away, they wait there. Code that has an event loop uses `statewright.Client`.",
    "Awaiting an answer raises": "Waiting for an answer raises",
    "Awaiting the answer raises": "Waiting for the answer raises",
    "what awaiting any answer does": "what waiting for any answer does",
    "that nobody awaits here": "that nobody waits for here",
    "what awaiting an answer raises": "what waiting for an answer raises",
    "what awaiting any request does": "what waiting for any answer does",
    "Raises what awaiting an answer does.": "Raises what waiting for an answer does.",
    "from when the answer is awaited": "from when the answer is waited for",
    "Then the answer is awaited as long as": "Then the answer is waited for as long as",
    "the block is cancelled and `LeaseLost` is raised; also when": "the `lost` of what the block was entered with says"
    " so, its `check()` raises `LeaseLost`, and so does the end of the block, which nothing can cancel; also when",
    "it must not block, because it is called by the event loop": "a thread of its own does that, so it may take its"
    " time",
}
WORDS_OF_A_LOOP = re.compile(r"await|async|event loop", re.IGNORECASE)
WIDTH = 120


def made() -> str:
    """Return what the file has to be."""
    source = SOURCE.read_text()
    tree = ast.parse(source)
    [client] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Client"]
    methods = [node for node in client.body if isinstance(node, Method) and not node.name.startswith("_")]
    [init] = [node for node in client.body if isinstance(node, Method) and node.name == "__init__"]
    words = _Words(sent={method.name for method in methods if _returns(method).startswith("Sent")})
    body = "\n".join(_method(method, words) for method in methods)
    text = HEADER.format(
        imports="{imports}",
        docstring=words.of(client, 4),
        of_init=words.of(init, 8),
        parameters=ast.unparse(init.args),
        arguments=", ".join(_arguments(init)),
    )
    text += textwrap.indent(body, "    ")
    constants = [
        node for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        and re.search(rf"\b{node.target.id}\b", text)
    ]  # fmt: skip
    names = ", ".join(sorted(node.target.id for node in constants if isinstance(node.target, ast.Name)))
    own = OWN_IMPORTS + (f"from statewright.client.client import {names}\n" if names else "")
    theirs = (ast.unparse(node) for node in tree.body if isinstance(node, ast.ImportFrom))
    text = text.replace("{imports}", "\n".join(_needed(theirs, own, text)), 1)
    words.check()
    return _formatted(text)


def _needed(theirs: Iterable[str], own: str, text: str) -> Iterator[str]:
    """Yield the imports that the text needs: those of this package, and what else the original imports."""
    names = set(re.findall(r"import (.*)", own.replace(", ", "\nimport ")))
    yield from own.strip().splitlines()
    for line in theirs:
        module, _, imported = line.partition(" import ")
        kept = [one for one in imported.split(", ") if one not in names and re.search(rf"\b{one}\b", text)]
        if kept:
            yield f"{module} import {', '.join(kept)}"


def _method(method: Method, words: "_Words") -> str:
    decorators = [ast.unparse(decorator) for decorator in method.decorator_list]
    lines = [f"@{decorator}" for decorator in decorators]
    lines.append(f"def {method.name}({ast.unparse(method.args)}) -> {_returns(method)}:")
    if "overload" in decorators:
        return "\n".join([*lines, "    ...", ""])
    lines.append(f'    """{words.of(method, 8)}"""')
    return "\n".join([*lines, *(f"    {line}" for line in _body(method)), ""])


def _body(method: Method) -> list[str]:
    call = ", ".join(_arguments(method))
    behind = f", {call}" if call else ""
    named = f"opened.{method.name}"
    returns = _returns(method)
    first, *others = re.sub(r"\[[^]]*]", "", returns).split(" | ")
    is_property = any(ast.unparse(decorator) == "property" for decorator in method.decorator_list)
    # Of several signatures each has its own type, which the body cannot know.
    opened = (
        "opened: Any = self._opened()" if others and first in (*SENT, *SUBSCRIPTIONS) else "opened = self._opened()"
    )
    if is_property:
        result = named
    elif first in SENT:
        result = f"under_way(self, {named}({call}))"
        result = f"cast({returns!r}, {result})" if others else result
    elif first in SUBSCRIPTIONS:
        result = f"subscribed(self, opened, {named}({call}))"
    elif first in BLOCKS:
        result = f"{first}(self, opened.background, opened.background.call({named}{behind}))"
    elif first == "Iterator":
        result = f"each(self, opened.background, {named})"
    elif isinstance(method, ast.AsyncFunctionDef):
        result = f"opened.background.run({named}{behind})"
    else:
        raise SystemExit(f"Client.{method.name} returns {returns}, which has no counterpart without a loop")
    return [opened, f"return {result}"]


def _arguments(method: Method) -> Iterator[str]:
    in_the_loop = isinstance(method, ast.AsyncFunctionDef)
    for argument in method.args.args:
        if argument.arg != "self":
            yield _handed_on(argument, in_the_loop=in_the_loop)
    for argument in method.args.kwonlyargs:
        yield f"{argument.arg}={_handed_on(argument, in_the_loop=in_the_loop)}"
    if method.args.kwarg is not None:
        yield f"**{method.args.kwarg.arg}"


def _handed_on(argument: ast.arg, *, in_the_loop: bool) -> str:
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    if "Callable[" in annotation:
        return f"Apart({argument.arg}) if {argument.arg} is not None else None"
    # What the user iterates over is the user's code, which belongs into the user's thread.
    return f"listed({argument.arg})" if in_the_loop and "Iterable[" in annotation else argument.arg


def _returns(method: Method) -> str:
    assert method.returns is not None
    return ast.unparse(method.returns)


class _Words:
    """Puts docstrings into the words of code without an event loop."""

    def __init__(self, sent: set[str]) -> None:
        self._unused = set(PHRASES)
        self._sent = sent

    def of(self, node: ast.ClassDef | Method, indent: int) -> str:
        """Return the docstring as it stands at that indent."""
        docstring = ast.get_docstring(node)
        assert docstring is not None, node.name
        paragraphs = [self._paragraph(paragraph, WIDTH - indent) for paragraph in docstring.split("\n\n")]
        text = "\n\n".join(paragraphs)
        if WORDS_OF_A_LOOP.search(" ".join(text.split()).replace("Code that has an event loop uses", "")):
            raise SystemExit(
                f"the docstring of {node.name} speaks of an event loop; see {Path(__file__).name}:\n{text}"
            )
        spaced = textwrap.indent(text, " " * indent).lstrip()
        return f"{spaced}\n{' ' * indent}" if "\n" in spaced else spaced

    def check(self) -> None:
        """Raise SystemExit where a phrase is in no docstring."""
        if self._unused:
            raise SystemExit(f"no docstring has these phrases any more: {sorted(self._unused)}")

    def _paragraph(self, paragraph: str, width: int) -> str:
        if paragraph.startswith("    "):
            return "\n".join(self._code(line) for line in paragraph.splitlines())
        flat = before = " ".join(paragraph.split())
        for phrase, other in PHRASES.items():
            if phrase in flat:
                flat = flat.replace(phrase, other)
                self._unused.discard(phrase)
        flat = flat.replace("`async with`", "`with`")
        if flat == before:
            return paragraph
        # A line of its own may stand between quotes.
        return flat if len(flat) <= width - 6 else textwrap.fill(flat, width - 3, break_on_hyphens=False)

    def _code(self, line: str) -> str:
        awaited = re.search(r"await \w+\.(\w+)\(.*\)$", line)
        if awaited and awaited[1] in self._sent:
            line += ".answer()"
        return line.replace("await ", "").replace("async with", "with").replace("async for", "for")


def _formatted(text: str) -> str:
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(TARGET)]
    for command in (["check", "--select", "I,F401", "--fix", "--quiet"], ["format", "--quiet"]):
        done = subprocess.run([*ruff, *command, *name, "-"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{done.stdout}\n{done.stderr}")
        text = done.stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(made())
