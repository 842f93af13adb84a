"""
The reference: a page for each public module, written when the manual is built.

The modules are all that have no underscore in their path. The names of a page are those of the
module's ``__all__``, so that a new name needs no line here. A class shows its public members,
unless `_SHOWN` says something else. Of a long signature only the beginning is shown: each option
has its line below.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from zope.interface.interface import InterfaceClass

import yatxmilter

#: Where the pages are written; Git ignores it.
FOLDER = "reference/api"

#: The options of autodoc for classes that should not show all, or show more; ``()`` behind the name
#: leaves the signature out, where the library makes the objects and not its user.
_SHOWN: dict[str, tuple[str, ...]] = {
    "yatxmilter.MilterProtocol": (":members: addMilter, contextOf, milters",),
    "yatxmilter.MilterProtocolFactory": (
        ":members: addMilterFactory, addObserver, buildProtocol, drain",
    ),
    "yatxmilter.client.MilterClient": (":members:", ":inherited-members: Protocol"),
    "yatxmilter.client.MilterClientFactory": (),
    "yatxmilter.conditions.Condition": ("()",),
    "yatxmilter.conditions.MailView": ("()",),
    "yatxmilter.defaults.Shadow": ("()",),
    "yatxmilter.logs.JournalLog": (),
    "yatxmilter.logs.JsonLog": (),
    "yatxmilter.logs.TextLog": (),
    "yatxmilter.message.Address": ("()", ":members: addr_spec"),
    "yatxmilter.message.Client": ("()", ":members: ip"),
    "yatxmilter.message.FieldValue": ("()", ":members: octets, defects"),
    "yatxmilter.message.Group": ("()",),
    "yatxmilter.message.HeaderField": ("()", ":members:"),
    "yatxmilter.message.Headers": ("()", ":members:", ":exclude-members: allow, rewrite"),
    "yatxmilter.message.Message": (
        "()",
        ":members:",
        ":inherited-members:",
        ":exclude-members: allow, repeat",
    ),
    "yatxmilter.message.MessageMilter": (
        "()",
        ":members: connected, greeted, sender, recipient, headers, message",
    ),
    "yatxmilter.message.Part": ("()", ":members:"),
    "yatxmilter.message.Recipient": ("()",),
    "yatxmilter.message.Recipients": ("()", ":members: add, remove"),
    "yatxmilter.metrics.MilterMetrics": (":members: watch, forget, snapshot",),
    "yatxmilter.protocol.Context": (
        "()",
        ":members:",
        ":exclude-members: show_macros, claim, macros",
    ),
    "yatxmilter.remote.RemoteMilter": ("()",),
    "yatxmilter.remote.RemoteMilterFactory": (":members: close",),
    "yatxmilter.service.MilterService": (":members: stopService",),
    "yatxmilter.smtp.MilterESMTP": (":members: clientName",),
    "yatxmilter.smtp.MilterSMTPFactory": (),
    "yatxmilter.smtp.SMTPMilters": (":members: drain",),
    "yatxmilter.testing.Answer": ("()", ":members:"),
    "yatxmilter.testing.Call": ("()",),
    "yatxmilter.testing.Delivered": ("()", ":members:"),
    "yatxmilter.testing.Path": ("()",),
    "yatxmilter.testing.Reply": ("()", ":members: text"),
    "yatxmilter.testing.Sent": ("()", ":members:", ":exclude-members: transaction"),
    "yatxmilter.testing.Session": ("()", ":members:", ":exclude-members: open"),
    "yatxmilter.workers.WorkerService": (":members: ask, numbers",),
}

#: A signature is shortened when it is longer than this.
WIDTH = 60


def public_modules() -> list[str]:
    """
    List the modules that users import from.
    """
    found = pkgutil.walk_packages(yatxmilter.__path__, "yatxmilter.")
    names = (info.name for info in found)
    return ["yatxmilter", *sorted(name for name in names if "._" not in name and name[-1] != "_")]


def directive(module: ModuleType, name: str) -> Iterator[str]:
    """
    Say how one name is shown.
    """
    path, value = f"{module.__name__}.{name}", getattr(module, name)
    if isinstance(value, InterfaceClass):
        # Sphinx knows classes and functions only; an interface reads well as it is written.
        folder = Path(yatxmilter.__file__).parent.parent
        source = Path(inspect.getsourcefile(module) or "").relative_to(folder)
        yield f".. literalinclude:: ../../../{source}"
        yield f"   :pyobject: {name}"
    elif isinstance(value, type):
        kind = "exception" if issubclass(value, BaseException) else "class"
        options = list(_SHOWN.get(path, (":members:",)))
        empty = options[:1] == ["()"]
        yield f".. auto{kind}:: {path}{options.pop(0) if empty else ''}"
        yield from (f"   {option}" for option in options)
    elif callable(value):
        yield f".. autofunction:: {path}"
    else:
        yield from data(path, name, type(value).__module__)
    yield ""


def data(path: str, name: str, home: str) -> Iterator[str]:
    """
    Say how a constant is shown: with the comment above it, where its class is defined. Sphinx looks
    for that in the module of the page only, which imports it.
    """
    comments: dict[tuple[str, str], list[str]] = {}
    if home.startswith("yatxmilter."):
        comments = ModuleAnalyzer.for_module(home).find_attr_docs()
    comment = comments.get(("", name))
    if comment:
        yield from (f".. py:data:: {name}", "", f"   {' '.join(comment)}")
    else:
        yield f".. autodata:: {path}"


def page(name: str) -> str:
    """
    Write the page of a module.
    """
    module = import_module(name)
    summary = (inspect.getdoc(module) or "").replace("``", "`")
    lines = [f"# {name}", ""]
    if name == "yatxmilter.constants":
        # A number each; the tables of the protocol say what they are for.
        names = ["ReturnCode", "action_names", "step_names"]
        summary += (
            "\n\nWhat the numbers are for is in [the tables of the protocol](../../protocol.md)."
        )
    else:
        names = list(module.__all__)
    elsewhere = [] if name == "yatxmilter" else [n for n in names if n in yatxmilter.__all__]
    if elsewhere:
        listed = ", ".join(f"`{one}`" for one in sorted(elsewhere))
        summary += f"\n\nDescribed with the package, [yatxmilter](yatxmilter.md): {listed}."
    # What most readers look for comes first.
    names.sort(key=lambda one: not isinstance(getattr(module, one), type))
    lines += [summary, "", "```{eval-rst}", f".. currentmodule:: {name}", ""]
    for one in names:
        if one not in elsewhere:
            lines += directive(module, one)
    return "\n".join([*lines, "```", ""])


def write_pages(app: Sphinx) -> None:
    """
    Write all pages; one that is as it should be is not touched, so that Sphinx need not read it.
    """
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{name}.md": page(name) for name in public_modules()}
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def shorten(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, result: str
) -> tuple[str | None, str] | None:
    """
    Cut a long signature behind the arguments that are not options.
    """
    if not signature or len(signature) <= WIDTH:
        return None
    try:
        parameters = inspect.signature(obj).parameters.values()
    except (TypeError, ValueError):
        return None
    shown = [
        f"{each.name}={each.default.__name__}"
        if isinstance(each.default, type) and each.default is not each.empty
        else str(each.replace(annotation=each.empty))
        for each in parameters
        if each.name not in ("self", "cls") and each.kind is not each.KEYWORD_ONLY
    ]
    while shown and len(", ".join(shown)) > WIDTH:
        shown.pop()
    return f"({', '.join([*shown, '...'])})", result


def setup(app: Sphinx) -> dict[str, bool]:
    """
    Write the pages before Sphinx looks for them.
    """
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
