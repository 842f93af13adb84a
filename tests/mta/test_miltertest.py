"""
The scripts of ``miltertest/``, run by OpenDKIM's miltertest with yatxmilter behind it.

A script plays the MTA and checks the answers; the milter that it talks to, and the callbacks that
this milter should have got, are said here.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.ports import free_ports
from yatxmilter.constants import SMFIF_ADDHDRS, SMFIP_HDR_LEADSPC

from .control import MilterProcess, Script, script
from .processes import LOOPBACK, PATIENCE, require_program

SCRIPTS = Path(__file__).with_name("miltertest")

ADD = ("smfi_addheader", "X-Added", "value")

BEFORE_MAIL = ("CONTINUE", "REJECT", "TEMPFAIL", "ACCEPT")
IN_MESSAGE = (*BEFORE_MAIL, "DISCARD")
#: The return codes of each callback, each of which has a response of its own.
RETURN_CODES = {
    "connect": BEFORE_MAIL,
    "helo": BEFORE_MAIL,
    "envfrom": IN_MESSAGE,
    "envrcpt": IN_MESSAGE,
    "data": IN_MESSAGE,
    "header": IN_MESSAGE,
    "eoh": IN_MESSAGE,
    "body": (*IN_MESSAGE, "SKIP"),
    "eom": IN_MESSAGE,
    "unknown": ("CONTINUE", "REJECT", "TEMPFAIL"),
}

#: The arguments that the scripts give to the callback they are about.
ARGUMENTS: dict[str, list[Any]] = {
    "connect": ["client.example.test", "IPv4Address(type='TCP', host='192.0.2.1', port="],
    "helo": ["client.example.test"],
    "envfrom": [["<sender@client.example>", "SIZE=42", "BODY=8BITMIME"]],
    "envrcpt": [["<rcpt@sink.example>", "NOTIFY=NEVER"]],
    "data": [],
    "header": ["Subject", "A folded\n\tvalue"],
    "eoh": [],
    "body": ["A body\r\n"],
    "eom": [],
    "unknown": ["XFOO bar"],
}


@lru_cache
def milter_process() -> MilterProcess:
    """
    Start the milter once for all tests of this module.
    """
    folder = Path(tempfile.mkdtemp(prefix="yatxmilter-"))
    atexit.register(shutil.rmtree, folder)
    process = MilterProcess(folder / "milter.sock", free_ports(1)[0], folder / "milter.log")
    atexit.register(process.stop)
    process.start()
    return process


class MiltertestCase(SynchronousTestCase):
    """
    Runs scripts of miltertest.
    """

    def setUp(self) -> None:
        """
        Find miltertest and start the milter.
        """
        self.program = require_program("miltertest")
        self.milter = milter_process()

    def tearDown(self) -> None:
        """
        Check the milter's log.
        """
        self.assertEqual(self.milter.take_log(), [], "unexpected warnings or errors in the log")

    def run_script(
        self,
        name: str,
        *milters: Script,
        expected: str = "CONTINUE",
        tcp: bool = False,
        **options: Any,
    ) -> None:
        """
        Run a script, which has to pass, and wait until its connection is closed.

        :param expected: the reply to what the script is about, as a return code
        """
        milters = milters or (script(),)
        self.milter.load(milters, options)
        where = f"inet:{self.milter.port}@{LOOPBACK}" if tcp else f"unix:{self.milter.path}"
        settings = {"folder": SCRIPTS, "socket": where, "expected": f"SMFIR_{expected}"}
        defines = [word for key, value in settings.items() for word in ("-D", f"{key}={value}")]
        result = subprocess.run(
            [self.program, *defines, "-s", SCRIPTS / f"{name}.lua"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            text=True,
        )
        self.assertEqual(result.returncode, 0, f"{name}.lua: {result.stdout}")
        self.milter.wait("xxfi_close")


def add_tests(case: type[Any], rows: dict[str, tuple[str, ...]], promise: str) -> None:
    """
    Give a test case a test for each script and return code, which runs its ``check``.
    """

    def make_test(name: str, code: str) -> Callable[[Any], None]:
        def test(self: Any) -> None:
            self.check(name, code)

        test.__name__ = f"test_{name}_{code.lower()}"
        test.__doc__ = promise.format(name, code)
        return test

    for name, codes in rows.items():
        for code in codes:
            test = make_test(name, code)
            setattr(case, test.__name__, test)


class CallbackTests(MiltertestCase):
    """
    Each callback with each of its return codes, and the beginning and end of connections.
    """

    def check(self, stage: str, code: str) -> None:
        """
        A callback gets its arguments, and its return code becomes the reply.
        """
        self.run_script(stage, script(**{f"xxfi_{stage}": [code]}), expected=code)
        arguments = self.milter.arguments(f"xxfi_{stage}")[0]
        if stage == "connect":
            self.assertEqual(arguments[0], ARGUMENTS[stage][0])
            self.assertTrue(arguments[1].startswith(ARGUMENTS[stage][1]), arguments)
        else:
            self.assertEqual(list(arguments), ARGUMENTS[stage])

    def test_client_with_ipv6_address_is_shown_as_one(self) -> None:
        """
        A client with an IPv6 address is shown as one.
        """
        self.run_script("connect_ipv6")
        [(_, address)] = self.milter.arguments("xxfi_connect")
        self.assertRegex(address, r"^IPv6Address\(.*host='2001:db8::7'")

    def test_client_of_unknown_family_has_no_address(self) -> None:
        """
        A client of unknown family has no address.
        """
        self.run_script("connect_unknown")
        self.assertEqual(self.milter.arguments("xxfi_connect"), [("localhost", None)])

    def test_all_is_the_same_over_tcp(self) -> None:
        """
        All is the same over TCP.
        """
        self.run_script("eom", tcp=True)

    def test_body_of_several_chunks_arrives_whole(self) -> None:
        """
        A body of several chunks arrives whole.
        """
        self.run_script("body_long")
        chunks = [args[0] for args in self.milter.arguments("xxfi_body")]
        sizes = [len(each) if isinstance(each, str) else each["size"] for each in chunks]
        self.assertGreater(len(sizes), 1)
        self.assertGreaterEqual(sum(sizes), 300_000)

    def test_abort_is_told_once_and_only_if_message_is_open(self) -> None:
        """
        An abort is told once, and only if a message is open.
        """
        self.run_script("abort")
        self.assertEqual(
            self.milter.order(),
            ["connect", "helo", "envfrom", "envrcpt", "abort", "envfrom", "abort", "close"],
        )

    def test_quit_between_messages_closes_without_abort(self) -> None:
        """
        A quit between messages closes without abort.
        """
        self.run_script("close")
        self.assertEqual(self.milter.order()[-2:], ["eom", "close"])

    def test_connection_that_breaks_in_message_is_abort_and_close(self) -> None:
        """
        A connection that breaks in a message is an abort and a close.
        """
        self.run_script("close_abrupt")
        self.assertEqual(self.milter.order()[-3:], ["body", "abort", "close"])

    def test_second_message_on_connection_is_filtered_as_first(self) -> None:
        """
        A second message on the connection is filtered as the first.
        """
        self.run_script("two_messages", script(xxfi_eom=[ADD]))
        senders = [args[0][0] for args in self.milter.arguments("xxfi_envfrom")]
        self.assertEqual(senders, ["<sender@client.example>", "<second@client.example>"])

    def test_callbacks_that_are_coroutines_answer_as_others_do(self) -> None:
        """
        Callbacks that are coroutines answer as others do.
        """
        self.run_script(
            "addheader", script(how="coroutine", xxfi_eom=ADD_HEADERS, xxfi_eoh=["CONTINUE"])
        )


add_tests(CallbackTests, RETURN_CODES, "xxfi_{} gets its arguments, and {} becomes the reply.")


class NegotiationTests(MiltertestCase):
    """
    What is asked for, and what then happens.
    """

    def test_only_what_is_wanted(self) -> None:
        """
        A milter is asked for no more than it overrides, and gets no more.
        """
        self.run_script("negotiate", script(only=["xxfi_helo", "xxfi_close"], flags=SMFIF_ADDHDRS))
        self.assertEqual(self.milter.order(), ["helo", "close"])

    def test_with_an_mta_of_protocol_version_2_nothing_newer_is_asked_for(self) -> None:
        """
        With an MTA of protocol version 2 nothing newer is asked for.
        """
        self.run_script("negotiate_old")
        self.assertEqual(len(self.milter.arguments("xxfi_eom")), 1)

    def test_milter_that_asks_for_too_much_closes_connection_without_answer(self) -> None:
        """
        A milter that asks for too much closes the connection without an answer.
        """
        self.run_script("negotiate_fails", script("greedy", xxfi_negotiate=[("agree", 0x200, 0)]))
        self.milter.wait_log("greedy")

    def test_with_smfip_hdr_leadspc_values_keep_their_blanks(self) -> None:
        """
        With SMFIP_HDR_LEADSPC values keep their blanks.
        """
        milter = script(
            xxfi_negotiate=[("agree", SMFIF_ADDHDRS, SMFIP_HDR_LEADSPC)],
            xxfi_eom=[("smfi_addheader", "X-Added", "  value")],
        )
        self.run_script("leading_space", milter)
        self.assertEqual(self.milter.arguments("xxfi_header"), [("Subject", "   A test")])

    def test_callbacks_that_promise_not_to_answer_are_called(self) -> None:
        """
        Callbacks that promise not to answer are called, and nothing is sent.
        """
        self.run_script("noreply", script(noreply=["xxfi_helo", "xxfi_header", "xxfi_body"]))
        self.assertEqual(len(self.milter.arguments("xxfi_header")), 2)
        self.assertEqual(len(self.milter.arguments("xxfi_body")), 1)

    def test_smfi_getsymval_finds_macros_of_all_stages(self) -> None:
        """
        smfi_getsymval finds the macros of all stages, of recipients those of the last.
        """
        names = ["j", "{j}", "{daemon_name}", "daemon_name", "{tls_version}", "i", "{rcpt_addr}"]
        asked = [("smfi_getsymval", name) for name in names]
        self.run_script("macros", script(xxfi_envrcpt=asked[-1:], xxfi_eom=asked))
        values = [value for _, value in self.milter.arguments("smfi_getsymval")]
        self.assertEqual(values[:2], ["one@sink.example", "two@sink.example"])
        self.assertEqual(
            dict(zip(names, values[2:], strict=True)),
            {
                "j": "mta.example.test",
                "{j}": "mta.example.test",
                "{daemon_name}": "MTA",
                "daemon_name": None,
                "{tls_version}": "TLSv1.3",
                "i": "QUEUEID1",
                "{rcpt_addr}": "two@sink.example",
            },
        )

    def test_milter_that_asks_for_macros_does_not_put_mta_out_of_step(self) -> None:
        """
        A milter that asks for macros does not put the MTA out of step.
        """
        lists = [("smfi_setsymlist", stage, "{client_addr} j") for stage in range(7)]
        self.run_script("eom", script(xxfi_negotiate=lists))


ADD_HEADERS = [ADD, ("smfi_addheader", "X-Folded", "one\n\ttwo")]

#: A script of each edit and reply text: what the milter does at the end of the message.
EDITS: dict[str, list[Any]] = {
    "addheader": ADD_HEADERS,
    "insheader": [
        ("smfi_insheader", 0, "X-Top", "value"),
        ("smfi_insheader", 5, "X-Fifth", "value"),
    ],
    "chgheader": [
        ("smfi_chgheader", "Subject", 1, "Changed"),
        ("smfi_chgheader", "X-None", 1, None),
        ("smfi_chgheader", "X-Empty", 2, ""),
    ],
    "replacebody": [("smfi_replacebody", b"Another body\r\n")],
    "addrcpt": [("smfi_addrcpt", "<new@sink.example>")],
    "addrcpt_par": [("smfi_addrcpt_par", "<new@sink.example>", "NOTIFY=NEVER"), ADD],
    "delrcpt": [("smfi_delrcpt", "<rcpt@sink.example>")],
    "chgfrom": [("smfi_chgfrom", "<new@client.example>", "RET=HDRS"), ADD],
    "quarantine": [("smfi_quarantine", "looks odd")],
}


class EditTests(MiltertestCase):
    """
    Each edit, with CONTINUE and with ACCEPT, and the texts of refusals.
    """

    def check(self, name: str, code: str) -> None:
        """
        The edit reaches the MTA.
        """
        self.run_script(name, script(xxfi_eom=[*EDITS[name], code]), expected=code)

    def test_slow_end_of_message_sends_progress_by_itself(self) -> None:
        """
        A slow end of message sends progress by itself.
        """
        milter = script(xxfi_eom=[("wait", 4), ADD])
        self.run_script("progress", milter, progress_interval=0.5)

    def test_smfi_progress_keeps_mta_waiting_where_nothing_comes_by_itself(self) -> None:
        """
        smfi_progress keeps the MTA waiting where nothing comes by itself.
        """
        steps = [("wait", 1.5), ("smfi_progress",), ("wait", 1.5), ADD]
        self.run_script("progress", script(xxfi_eom=steps), progress_interval=600)

    def test_text_of_smfi_setreply_comes_with_refusal(self) -> None:
        """
        The text of smfi_setreply comes with the refusal.
        """
        call = ("smfi_setreply", "553", "5.7.2", "No mail today")
        self.run_script("setreply", script(xxfi_eom=[call, "REJECT"]), expected="REPLYCODE")

    def test_lines_of_smfi_setmlreply_come_with_refusal(self) -> None:
        """
        The lines of smfi_setmlreply come with the refusal.
        """
        call = ("smfi_setmlreply", "553", "5.7.2", "No mail", "today", "sorry")
        self.run_script("setmlreply", script(xxfi_eom=[call, "REJECT"]), expected="REPLYCODE")


add_tests(
    EditTests, dict.fromkeys(EDITS, ("CONTINUE", "ACCEPT")), "smfi_{} reaches the MTA, with {}."
)


class SeveralTests(MiltertestCase):
    """
    Two milters behind one MTA that knows of one.
    """

    def test_edits_of_both_milters_arrive(self) -> None:
        """
        The edits of both milters arrive.
        """
        one, two = ADD_HEADERS
        self.run_script("addheader", script("One", xxfi_eom=[one]), script("Two", xxfi_eom=[two]))

    def test_refusal_of_second_milter_has_its_own_text(self) -> None:
        """
        The refusal of the second milter has its own text.
        """
        call = ("smfi_setreply", "553", "5.7.2", "No mail today")
        other = ("smfi_setreply", "554", "5.0.0", "Not this text")
        self.run_script(
            "setreply",
            script("One", xxfi_eom=[other]),
            script("Two", xxfi_eom=[call, "REJECT"]),
            expected="REPLYCODE",
        )
