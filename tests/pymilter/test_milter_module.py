"""
The module ``milter``: its names, and what its functions take.
"""

from __future__ import annotations

import os
from typing import Any

import milter

from tests.pymilter.programs import ProgramCase
from yatxmilter import constants as c
from yatxmilter.pymilter._context import error_class
from yatxmilter.pymilter._names import NUMBERS
from yatxmilter.pymilter._program import PROGRAM


class NamesTests(ProgramCase):
    """
    What programs find in the module.
    """

    def test_numbers_are_libmilters_under_pymilters_names_and_plain(self) -> None:
        """
        Numbers are libmilter's, under pymilter's names, and plain.
        """
        self.assertEqual(milter.REJECT, c.SMFIS_REJECT)
        self.assertEqual(milter.CHGBODY, milter.MODBODY)
        self.assertEqual(milter.P_NR_HDR, c.SMFIP_NR_HDR)
        self.assertEqual((milter.SUCCESS, milter.FAILURE, milter.VERSION), (0, -1, 0x1000001))
        self.assertEqual({type(getattr(milter, name)) for name in NUMBERS}, {int})

    def test_everything_is_exported(self) -> None:
        """
        Whatever is in the module's list is there.
        """
        self.assertEqual([name for name in milter.__all__ if not hasattr(milter, name)], [])

    def test_modules_error_is_an_exception_that_says_where_it_is_from(self) -> None:
        """
        The module's error is an exception that says where it is from.
        """
        self.assertEqual(f"{milter.error.__module__}.{milter.error.__name__}", "milter.error")
        self.assertIs(error_class(), milter.error)

    def test_versions_and_diagnosis(self) -> None:
        """
        The version is that of the libmilter this answers for; contexts are counted.
        """
        self.assertEqual(milter.getversion(), (1, 0, 1))
        made, gone = milter.getdiag()
        self.assertGreaterEqual(made, gone)


class SettingTests(ProgramCase):
    """
    What the functions take.
    """

    def test_callback_that_is_set_replaces_one_before_it_which_is_returned(self) -> None:
        """
        A callback that is set replaces the one before it, which is returned; None is none.
        """
        stages = [
            "connect",
            "helo",
            "envfrom",
            "envrcpt",
            "header",
            "eoh",
            "body",
            "eom",
            "abort",
            "close",
        ]
        for stage in stages:
            put: Any = getattr(milter, f"set_{stage}_callback")
            self.assertIs(put(len), None)
            self.assertIs(put(None), len)
            self.assertIs(put(len), None)
            self.assertEqual(
                str(self.assertRaises(TypeError, put, 5)), ("callback parameter must be callable")
            )

    def test_three_callbacks_without_functions_are_set_here(self) -> None:
        """
        A name is needed; the three callbacks that have no function of their own are set here.
        """
        milter.register("one", data=len, unknown=None, negotiate=len)
        self.assertEqual((PROGRAM.name, PROGRAM.callbacks.data), ("one", len))
        self.assertRaises(TypeError, milter.register, "one", data=5)
        self.assertRaises(TypeError, milter.register, "one", other=len)
        self.assertRaises(TypeError, milter.register, 5)

    def test_four_codes_are_policies(self) -> None:
        """
        Four codes are policies.
        """
        for code in (milter.TEMPFAIL, milter.REJECT, milter.CONTINUE, milter.ACCEPT):
            milter.set_exception_policy(code)
        self.assertEqual(PROGRAM.policy, milter.ACCEPT)
        self.assertRaises(milter.error, milter.set_exception_policy, milter.DISCARD)
        self.assertRaises(TypeError, milter.set_exception_policy, "x")

    def test_numbers_are_whole(self) -> None:
        """
        What is no whole number, or none of 32 bits, is refused as the C extension does.
        """
        milter.set_flags(milter.ADDHDRS)
        self.assertEqual(PROGRAM.flags, milter.ADDHDRS)
        milter.settimeout(60)
        milter.setbacklog(5)
        milter.setdbg(3)
        self.assertEqual((PROGRAM.timeout, PROGRAM.backlog), (60, 5))
        self.assertRaises(TypeError, milter.settimeout, "x")
        self.assertRaises(OverflowError, milter.setdbg, 2**31)
        self.assertRaises(OverflowError, milter.setdbg, -(2**31) - 1)
        self.assertRaises(milter.error, milter.setbacklog, 0)

    def test_address_is_text_and_not_empty(self) -> None:
        """
        An address is a text, and not empty.
        """
        milter.setconn("inet:0@127.0.0.1")
        self.assertRaises(milter.error, milter.setconn, "")
        self.assertRaises(TypeError, milter.setconn, None)
        self.assertRaises(ValueError, milter.setconn, "a\0b")


class SocketTests(ProgramCase):
    """
    Listening before ``main``.
    """

    def open(self, spec: str, rmsock: bool = True) -> None:
        milter.setconn(spec)
        milter.register("test")
        try:
            milter.opensocket(rmsock)
        finally:
            if PROGRAM._listening is not None:
                self.addCleanup(PROGRAM._listening.close)
                self.opened, PROGRAM._listening = PROGRAM._listening, None

    def test_not_before_all_is_said(self) -> None:
        """
        Without a name or an address nothing can be opened or run.
        """
        text = str(self.assertRaises(milter.error, milter.opensocket, True))
        self.assertIn("register()", text)
        milter.register("test")
        text = str(self.assertRaises(milter.error, milter.main))
        self.assertIn("setconn()", text)
        self.assertRaises(TypeError, milter.opensocket, "x")

    def test_unix_socket_is_made_with_the_umask_of_that_time(self) -> None:
        """
        A UNIX socket is made with the umask of that time; the file stays when it is closed.
        """
        self.addCleanup(os.umask, os.umask(0o177))
        self.open(f"unix:{self.path}")
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.opened.close()
        self.assertTrue(os.path.exists(self.path))

    def test_socket_that_is_there_is_removed_where_that_is_asked_for(self) -> None:
        """
        A socket that is there is removed where that is asked for, and in the way where it is not.
        """
        self.open(f"local:{self.path}")
        text = str(self.assertRaises(milter.error, self.open, self.path, False))
        self.assertIn("Address already in use", text)
        self.open(self.path)

    def test_file_that_is_no_socket_is_not_removed(self) -> None:
        """
        A file that is no socket is not removed.
        """
        (self.folder / "socket").write_text("precious")
        self.assertRaises(milter.error, self.open, self.path)
        self.assertEqual((self.folder / "socket").read_text(), "precious")

    def test_name_without_kind_is_path_as_for_libmilter(self) -> None:
        """
        A name without a kind is a path, as for libmilter.
        """
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.open("socket")
        self.assertTrue(os.path.exists(self.path))

    def test_tcp_sockets_of_both_kinds_listen_on_host_that_is_named(self) -> None:
        """
        TCP sockets, of both kinds, listen on the host that is named.
        """
        self.open("inet:0@127.0.0.1")
        self.assertEqual(self.opened.socket.getsockname()[0], "127.0.0.1")
        self.open("inet6:0@::1")
        self.assertEqual(self.opened.socket.getsockname()[0], "::1")
        self.open("inet6:0")
        self.assertEqual(self.opened.socket.getsockname()[0], "::")

    def test_descriptor_that_another_process_has_opened_is_taken_over(self) -> None:
        """
        A descriptor that another process has opened is taken over.
        """
        self.open(f"unix:{self.path}")
        descriptor = os.dup(self.opened.socket.fileno())
        self.open(f"fd:{descriptor}")
        self.assertEqual(self.opened.socket.fileno(), descriptor)

    def test_what_is_no_address_is_said_to_be_none_by_name(self) -> None:
        """
        What is no address is said to be none, by name.
        """
        for spec in ("zz:foo", "fd:x", "inet:0@::1"):
            text = str(self.assertRaises(milter.error, self.open, spec))
            self.assertIn(repr(spec), text)
        text = str(self.assertRaises(milter.error, self.open, "unix:/nowhere/at/all"))
        self.assertIn("No such file", text)

    def test_to_open_twice_changes_nothing(self) -> None:
        """
        To open twice changes nothing.
        """
        milter.setconn(f"unix:{self.path}")
        milter.register("test")
        milter.opensocket(True)
        first = PROGRAM._listening
        milter.opensocket(True)
        self.assertIs(PROGRAM._listening, first)
        assert first is not None
        first.close()
        PROGRAM._listening = None
