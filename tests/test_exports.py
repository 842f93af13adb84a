"""
What users may import, and that the numbers are libmilter's.

The lists are written out here, so that a name cannot vanish or appear by accident. Where the
machine has a C compiler and libmilter's header files, the compiler is asked for the value of every
constant in them; where it has not, that test says so and skips.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import yatxmilter
from yatxmilter import constants

ROOT = Path(__file__).resolve().parent.parent
HEADERS = Path("/usr/include/libmilter")

#: The modules that users import from, and all their names.
PUBLIC = {
    "yatxmilter": [
        "DISCONNECT",
        "Milter",
        "MilterFactory",
        "MilterProtocol",
        "MilterProtocolFactory",
        "Reply",
        "leading_space",
        "noreply",
        "parse_esmtp",
        "rejected_recipients",
        "symlist",
        "threaded",
    ],
    "yatxmilter.defaults": [
        "Milter",
        "MilterFactory",
        "MilterObserver",
        "Shadow",
        "leading_space",
        "noreply",
        "rejected_recipients",
        "symlist",
        "threaded",
    ],
    "yatxmilter.protocol": [
        "Context",
        "MilterProtocol",
        "MilterProtocolFactory",
    ],
    "yatxmilter.interfaces": [
        "IMilter",
        "IMilterFactory",
        "IMilterObserver",
    ],
    "yatxmilter.errors": [
        "LimitExceeded",
        "MilterError",
        "NegotiationError",
        "NotNegotiated",
        "NotOnce",
        "PeerError",
        "ProtocolError",
        "ReturnCodeError",
        "StartError",
        "UsageError",
        "ValueNotSendable",
        "WrongReactor",
        "WrongStage",
        "WrongThread",
    ],
    "yatxmilter.pymilter": [
        "factory",
        "install",
    ],
    "yatxmilter.conditions": [
        "Condition",
        "MailView",
        "authenticated",
        "client_in",
        "condition_option",
        "known_at",
        "macro_is",
        "over_tls",
        "recipient_matches",
        "sender_matches",
    ],
    "yatxmilter.client": [
        "AddHeader",
        "AddRecipient",
        "Agreement",
        "ChangeHeader",
        "ChangeSender",
        "DeleteRecipient",
        "Edit",
        "EndOfMessage",
        "InsertHeader",
        "MilterClient",
        "MilterClientFactory",
        "Outcome",
        "PeerError",
        "Quarantine",
        "Recipient",
        "ReplaceBody",
        "Response",
        "apply_edits",
        "connect_milter",
        "select_macros",
    ],
    "yatxmilter.connspec": [
        "client_endpoint",
        "server_endpoint",
    ],
    "yatxmilter.testing": [
        "Answer",
        "Call",
        "Delivered",
        "InMemoryMTA",
        "MilterTestFailure",
        "MilterTestMixin",
        "Path",
        "Replayed",
        "Reply",
        "Sent",
        "Session",
    ],
    "yatxmilter.remote": [
        "AddressState",
        "RemoteMilter",
        "RemoteMilterFactory",
    ],
    "yatxmilter.smtp": [
        "MilterESMTP",
        "MilterSMTPFactory",
        "SMTPMilters",
    ],
    "yatxmilter.message": [
        "Address",
        "Client",
        "FieldValue",
        "Group",
        "HeaderField",
        "Headers",
        "Message",
        "MessageMilter",
        "Part",
        "Recipient",
        "Recipients",
    ],
    "yatxmilter.service": [
        "MilterService",
        "run_milters",
    ],
    "yatxmilter.workers": [
        "WorkerService",
    ],
    "yatxmilter.metrics": [
        "MilterMetrics",
        "merge",
    ],
    "yatxmilter.metrics_page": [
        "listen_metrics",
        "metrics_site",
        "metrics_text",
    ],
    "yatxmilter.logs": [
        "FIELDS",
        "JournalLog",
        "JsonLog",
        "Redactor",
        "TextLog",
    ],
}


def public_names(module: str) -> list[str]:
    """
    List what a star import of a module brings.
    """
    return sorted(import_module(module).__all__)


class PublicNameTests(SynchronousTestCase):
    """
    Names that are promised.
    """

    def test_public_modules_offer_exactly_names_that_are_listed_here(self) -> None:
        """
        The public modules offer exactly the names that are listed here.
        """
        self.assertEqual(
            {module: public_names(module) for module in PUBLIC},
            {module: sorted(names) for module, names in PUBLIC.items()},
        )

    def test_nothing_else_is_public(self) -> None:
        """
        A module that is not in the list, but for the constants, has an underscore in its path.
        """
        root = ROOT / "yatxmilter"
        found = {path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")}
        named = {tuple(part for part in parts if part != "__init__") for parts in found}
        public = {parts for parts in named if not any(part.startswith("_") for part in parts)}
        self.assertEqual(
            {".".join(("yatxmilter", *parts)) for parts in public},
            {*PUBLIC, "yatxmilter.constants"},
        )

    def test_every_name_is_there(self) -> None:
        """
        Each name in the ``__all__`` of a public module can be imported from it.
        """
        for name in (*PUBLIC, "yatxmilter.constants"):
            module = import_module(name)
            missing = [name for name in module.__all__ if not hasattr(module, name)]
            self.assertEqual(missing, [], name)

    def test_one_object_each(self) -> None:
        """
        What the package offers is the very object of the module it comes from.
        """
        for module in ("yatxmilter.defaults", "yatxmilter.protocol"):
            for name in set(PUBLIC[module]) & set(PUBLIC["yatxmilter"]):
                self.assertIs(getattr(yatxmilter, name), getattr(import_module(module), name))


class HeaderTests(SynchronousTestCase):
    """
    The header files of libmilter against `yatxmilter.constants`.
    """

    def macros(self) -> list[str]:
        """
        List the numeric macros of the header files, or skip where there are none.
        """
        if not HEADERS.is_dir():
            raise SkipTest(f"libmilter's header files are not in {HEADERS} (libmilter-dev)")
        text = "".join((HEADERS / name).read_text() for name in ("mfapi.h", "mfdef.h"))
        return re.findall(r"^#\s*define\s+((?:SMFI|MI_|MILTER_)\w+)\s", text, re.MULTILINE)

    def test_each_constant_of_mfapi_h_and_mfdef_h_is_there(self) -> None:
        """
        Each constant of mfapi.h and mfdef.h is there, with the value that a C compiler gives it.
        """
        macros = self.macros()
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SkipTest("there is no C compiler (gcc)")
        # Some are for builds with other options, and not defined here.
        lines = [
            f'#ifdef {name}\n    printf("{name} %lld\\n", (long long) {name});\n#endif'
            for name in macros
        ]
        source = "\n".join(
            ["#include <stdio.h>", "#include <libmilter/mfapi.h>", "#include <libmilter/mfdef.h>"]
            + ["int main(void) {", *lines, "    return 0;", "}", ""]
        )
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "constants")
            Path(folder, "constants.c").write_text(source)
            subprocess.run([compiler, "-o", program, f"{program}.c"], check=True)
            output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        theirs = {name: int(value) for name, value in map(str.split, output.splitlines())}
        self.assertGreater(len(theirs), 90)
        self.assertEqual({name: getattr(constants, name, None) for name in theirs}, theirs)
