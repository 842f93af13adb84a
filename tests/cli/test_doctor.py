"""
Tests of ``yatxmilter doctor``: sockets, what milters answer, macros, and what is printed.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SkipTest

from tests.cli.doctoring import MASTER, USER, DoctorCase
from tests.sending import ScriptFactory, Terminal
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter._cli import doctor, doctor_paths
from yatxmilter._cli.doctor_paths import Identity, identity_of, may
from yatxmilter._wire.payloads import Offer, encode_offer

CHROOTED = MASTER.replace("n - n", "n - y")

NOBODY = Identity("nobody", 65534, frozenset({65534, 100}))


def offering(actions: int = 0, version: int = 6, **symbols: str) -> ScriptFactory:
    """
    Make a milter that agrees to some actions, and asks for macros at stages.
    """
    lists = {getattr(c, f"SMFIM_{stage}"): names.encode() for stage, names in symbols.items()}
    return ScriptFactory({"O": encode_offer(Offer(version, actions, 0), lists)})


class MilterCase(DoctorCase):
    """
    A test with milters.
    """

    def listen(self, factory: Any = None, name: str = "m.sock") -> Any:
        """
        Have a milter listen on a socket in the folder.
        """
        if factory is None:
            factory = MilterProtocolFactory(MilterFactory(Milter), reactor=self.reactor)
        self.reactor.listenUNIX(str(self.folder / name), factory)
        return factory

    def listen_tcp(self, factory: Any = None, interface: str = "127.0.0.1") -> int:
        """
        Have one listen on a TCP port.
        """
        factory = factory or offering()
        port = self.reactor.listenTCP(0, factory, interface=interface)
        return int(port.getHost().port)


class AnswerTests(MilterCase):
    """
    Negotiating with a milter.
    """

    def test_where_all_is_well_the_status_is_0(self) -> None:
        """
        Where all is well the status is 0, and the milter saw an MTA's offer and its QUIT.
        """
        factory = self.listen(offering(c.SMFIF_ADDHDRS | c.SMFIF_QUARANTINE))
        main = "smtpd_milters = unix:m.sock\nnon_smtpd_milters = unix:m.sock\n"
        run = self.postfix(main)
        self.assertEqual((run.status, run.checks), (0, set()))
        self.assertEqual(factory.letters, "OQ")
        self.assertEqual(factory.heard[0][1], struct.pack("!3I", 6, 0x1FF, 0x1FFFFF))
        self.assertEqual(
            run["answer"]["what"], "it answers: version 6, may add header fields, quarantine"
        )

    def test_milter_of_this_library_answers_and_is_told_of_as_any_other(self) -> None:
        """
        A milter of this library answers, and is told of as any other.
        """
        self.listen()
        run = self.postfix("smtpd_milters = unix:m.sock\n")
        self.assertEqual((run.status, run.checks), (0, {"note local-mail"}))
        self.assertIn("may change everything", run["answer"]["what"])

    def test_milter_that_stands_in_several_places_with_several_settings_is_asked_once(self) -> None:
        """
        A milter that stands in several places, with several settings, is asked once.
        """
        factory = self.listen(offering())
        run = self.postfix(
            "smtpd_milters = unix:m.sock { unix:m.sock, default_action=accept }\n"
            f"non_smtpd_milters = unix:{self.folder}/m.sock\n"
        )
        self.assertEqual(factory.connections, 1)
        self.assertEqual(sum(each["check"] == "answer" for each in run.findings), 3)

    def test_port_is_connected_to_by_address_and_by_name(self) -> None:
        """
        A port is connected to by address and by name, of the family that the MTA uses.
        """
        port = self.listen_tcp()
        master = MASTER.replace("cleanup", "#cleanup")
        for host, protocols in (("127.0.0.1", "all"), ("localhost", "ipv4"), ("", "ipv4")):
            main = f"smtpd_milters = inet:{host}:{port}\ninet_protocols = {protocols}\n"
            run = self.postfix(main, master=master)
            self.assertEqual(run.checks, {"note local-mail"}, host)
            self.reactor = SelectReactor()
            port = self.listen_tcp()

    def test_port_on_an_ipv6_address_is_connected_to(self) -> None:
        """
        So is one on an IPv6 address; with a name of that family alone IPv4 is not tried.
        """
        try:
            port = self.listen_tcp(interface="::1")
        except Exception as error:
            raise SkipTest(f"there is no IPv6 here: {error}") from error
        run = self.postfix(f"smtpd_milters = inet:[::1]:{port}\n")
        self.assertEqual(run.checks, {"note local-mail"})
        port = self.listen_tcp(interface="127.0.0.1")
        run = self.sendmail(f"O InputMailFilters=a\nXa, S=inet6:{port}@::1, F=T, T=R:30s\n")
        self.assertEqual(run.checks, {"error answer-refused"})

    def test_silent_port_and_socket_that_is_left_over_are_told_apart(self) -> None:
        """
        A port at which nobody listens, and a socket that is left over, are told apart.
        """
        with socket.socket() as taken, socket.socket(socket.AF_UNIX) as left:
            taken.bind(("127.0.0.1", 0))
            left.bind(str(self.folder / "old.sock"))
            port = taken.getsockname()[1]
            run = self.postfix(f"smtpd_milters = inet:127.0.0.1:{port}, unix:old.sock\n")
        self.assertEqual(run.status, 2)
        said = [each["what"] for each in run.findings if each["check"] == "answer-refused"]
        self.assertIn("no program listens there; clients are told to try again", said[0])
        self.assertIn("no milter listens at the socket; a milter that has ended", said[1])

    def test_milter_that_closes_the_connection_is_told(self) -> None:
        """
        A milter that closes the connection is told.
        """
        self.listen(ScriptFactory({"O": None}))
        run = self.postfix("smtpd_milters = unix:m.sock\n")
        self.assertIn("error answer-closed", run.checks)

    def test_one_that_says_nothing_is_given_up_after_the_time_out(self) -> None:
        """
        One that says nothing is given up after the time-out.
        """
        self.listen(ScriptFactory({"O": ...}))
        run = self.postfix("smtpd_milters = unix:m.sock\n", "--timeout", "0.1")
        self.assertIn("no answer within 0.1 s", run["answer-silent"]["what"])

    def test_does_not_leave(self) -> None:
        """
        One that does not close the connection after QUIT is left all the same.
        """
        self.listen(ScriptFactory({"Q": ...}))
        run = self.postfix("smtpd_milters = unix:m.sock\n")
        self.assertEqual(run.checks, {"note local-mail"})

    def test_what_is_no_milter_or_wants_what_was_not_offered_is_told(self) -> None:
        """
        Something that is not a milter, and a milter that wants what was not offered, are told.
        """

        class Greeting(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(b"220 mail.example.com ESMTP\r\n")

        self.listen(Factory.forProtocol(Greeting), "smtp.sock")
        self.listen(offering(0x80000), "more.sock")
        run = self.postfix("smtpd_milters = unix:smtp.sock unix:more.sock\n")
        said = [each["what"] for each in run.findings if each["check"] == "answer-foreign"]
        self.assertIn("no milter packet", said[0])
        self.assertIn("asks for actions that were not offered", said[1])

    def test_each_error_of_the_network_has_words_of_its_own(self) -> None:
        """
        Each error of the network has words of its own.
        """
        table = {
            "late": Deferred(),
            "unknown-host": DNSLookupError("no such host"),
            "unreachable": ConnectError(errno.ENETUNREACH, "Network is unreachable"),
            "denied": ConnectError(errno.EACCES, "Permission denied"),
            "absent": ConnectError(errno.ENOENT, "No such file or directory"),
            "refused": ConnectError(errno.ECONNREFUSED, "Connection refused"),
        }
        for kind, error in table.items():
            self.listen()

            def connect(endpoint: object, factory: object, error: Any = error) -> Any:
                if isinstance(error, Deferred):
                    return error
                raise error

            self.patch(UNIXClientEndpoint, "connect", connect)
            run = self.postfix("smtpd_milters = unix:m.sock\n", "--timeout", "0.1")
            level = "note" if kind == "denied" else "error"
            self.assertIn(f"{level} answer-{kind}", run.checks)

    def test_host_that_has_no_address_is_told_by_its_name(self) -> None:
        """
        A host that has no address is told by its name.
        """

        class Resolver:
            def resolveHostName(self, receiver: Any, *_: object) -> None:
                receiver.resolutionBegan(self)
                receiver.resolutionComplete()

        self.reactor.installNameResolver(Resolver())
        run = self.postfix("smtpd_milters = inet:milter.example.com:9900\n")
        self.assertIn("no address of milter.example.com", run["answer-unknown-host"]["what"])
        self.assertIn("note network", run.checks)

    def test_look_up_that_takes_too_long_is_given_up(self) -> None:
        """
        A look-up that takes too long is given up, and what it says later is not heard.
        """
        receivers = []

        class Resolver:
            def resolveHostName(self, receiver: Any, *_: object) -> None:
                receivers.append(receiver)

        self.reactor.installNameResolver(Resolver())
        main = "smtpd_milters = inet:milter.example.com:9900\n"
        run = self.postfix(main, "--timeout", "0.1")
        self.assertIn("error answer-late", run.checks)
        receivers[0].resolutionComplete()

    def test_low_milter_protocol_is_a_warning(self) -> None:
        """
        A low milter_protocol is a warning, and an error where the milter answers version 6 only.
        """

        low = "smtpd_milters = unix:m.sock\nmilter_protocol = 2\n"
        factory = self.listen(offering(version=2))
        self.assertIn("warning version-low", self.postfix(low).checks)
        self.assertIn(struct.pack("!3I", 2, 0x1FF, 0x7F), [each for _, each in factory.heard])

        class Picky(ScriptFactory):
            def buildProtocol(self, addr: object) -> Any:
                made = super().buildProtocol(addr)
                received = made.dataReceived

                def take(data: bytes) -> None:
                    made._answers = {"O": None} if data[4:9] == b"O\0\0\0\2" else made._answers
                    received(data)

                made.dataReceived = take
                return made

        self.listen(Picky({}))
        run = self.postfix(low)
        self.assertIn("error version-low", run.checks)
        self.assertIn("answers version 6, and not this one", run["version-low"]["what"])
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(self.folder / "old.sock"))
            run = self.postfix(low.replace("m.sock", "old.sock"))
        self.assertIn("warning version-low", run.checks)

    def test_milter_that_speaks_an_old_version_is_told(self) -> None:
        """
        A milter that speaks an old version is told.
        """
        self.listen(offering(version=2))
        run = self.postfix("smtpd_milters = unix:m.sock\n")
        self.assertIn("note version-old", run.checks)

    def test_ctrl_c_ends_it_with_status_130_and_nothing_printed(self) -> None:
        """
        Ctrl-C ends it with status 130 and nothing printed.
        """
        self.listen(ScriptFactory({"O": ...}))
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, handler)
        self.reactor.callLater(0.1, os.kill, os.getpid(), signal.SIGINT)
        self.write("main.cf", f"queue_directory = {self.folder}\nsmtpd_milters = unix:m.sock\n")
        self.write("master.cf", MASTER)
        self.assertEqual(self.run_doctor("--postfix", str(self.folder)), (130, ""))


class SocketTests(MilterCase):
    """
    The way to a UNIX socket.
    """

    def test_socket_that_is_not_there_is_told_by_its_path(self) -> None:
        """
        A socket that is not there is told by its path, with the folder that is missing.
        """
        run = self.postfix("smtpd_milters = unix:none.sock, unix:no/such.sock\n")
        said = [each["what"] for each in run.findings if each["check"] == "socket-missing"]
        self.assertEqual(said[0], f"{self.folder}/none.sock is not there")
        self.assertEqual(
            said[1], f"{self.folder}/no/such.sock is not there: there is no {self.folder}/no"
        )

    def test_socket_that_chrooted_smtpd_does_not_see_is_told(self) -> None:
        """
        A socket that a chrooted smtpd does not see is told with where it looks, and what to do.
        """
        self.listen()
        path = self.folder / "m.sock"
        (self.folder / "queue").mkdir()
        main = f"queue_directory = {self.folder}/queue\nsmtpd_milters = unix:{path}\n"
        run = self.postfix(main, master=CHROOTED)
        finding = run["socket-chroot"]
        self.assertIn(f"looks for {self.folder}/queue{path}", finding["what"])
        self.assertIn("write unix:milters/m.sock", finding["todo"])
        self.assertEqual(self.postfix(main).status, 2)

    def test_socket_in_queue_directory_is_seen_with_and_without_chroot(self) -> None:
        """
        A socket in the queue directory is seen with and without a chroot, by a relative path, and
        by an absolute one as the chrooted process sees it.
        """
        for master, path in ((MASTER, "m.sock"), (CHROOTED, "m.sock"), (CHROOTED, "/m.sock")):
            self.listen()
            run = self.postfix(f"smtpd_milters = unix:{path}\n", master=master)
            self.assertEqual(run.checks, {"note local-mail"}, (master, path))

    def test_long_in_chroot(self) -> None:
        """
        A path that is short enough inside the chroot may be longer outside.
        """
        deep = self.folder / ("x" * 80)
        deep.mkdir()
        (deep / ("y" * 40)).mkdir()
        factory = offering()
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        here = os.open(deep / ("y" * 40), os.O_RDONLY)
        self.addCleanup(os.close, here)
        listening.bind(f"/proc/self/fd/{here}/m.sock")
        listening.listen()
        listening.setblocking(False)
        self.reactor.adoptStreamPort(listening.fileno(), socket.AF_UNIX, factory)
        main = f"queue_directory = {deep}\nsmtpd_milters = unix:/{'y' * 40}/m.sock\n"
        run = self.postfix(main, master=CHROOTED)
        self.assertEqual(run.checks, {"note local-mail"})
        self.assertEqual(factory.letters, "OQ")

    def test_default_of_chroot(self) -> None:
        """
        What "-" in the chroot column means depends on the compatibility level.
        """
        master = MASTER.replace("n - n", "n - -")
        for level, chrooted in (("3.6", False), ("0", True)):
            self.listen()
            path = self.folder / "m.sock"
            main = f"smtpd_milters = unix:{path}\ncompatibility_level = {level}\n"
            run = self.postfix(main, master=master)
            self.assertEqual("error socket-chroot" in run.checks, chrooted)

    def test_service_without_the_unprivileged_flag_connects_as_root(self) -> None:
        """
        A service without the "unprivileged" flag connects as root.
        """
        self.listen()
        (self.folder / "m.sock").chmod(0)
        master = "smtp inet n n n - - smtpd\n"
        run = self.postfix("smtpd_milters = unix:m.sock\n", master=master)
        self.assertIn("the user root may connect", run["socket-permission"]["what"])

    def test_symbolic_links_are_followed_inside_the_chroot(self) -> None:
        """
        Symbolic links are followed inside the chroot, and a circle of them is not there.
        """
        self.listen()
        (self.folder / "relative").symlink_to("./x/../m.sock")
        (self.folder / "absolute").symlink_to("/m.sock")
        (self.folder / "circle").symlink_to("circle")
        (self.folder / "x").mkdir()
        run = self.postfix(
            "smtpd_milters = unix:relative unix:absolute unix:circle\n", master=CHROOTED
        )
        checks = {"error socket-missing", "note local-mail", "note timeout-sum"}
        self.assertEqual(run.checks, checks)
        self.assertIn("circle", run["socket-missing"]["what"])

    def test_file_or_a_folder_in_the_sockets_place_is_told(self) -> None:
        """
        A file or a folder in the socket's place is told.
        """
        self.write("file", "")
        (self.folder / "folder").mkdir()
        run = self.postfix("smtpd_milters = unix:file unix:folder\n")
        said = [each["what"] for each in run.findings if each["check"] == "socket-type"]
        self.assertEqual(
            said,
            [
                f"{self.folder}/file is a file and not a socket",
                f"{self.folder}/folder is a folder and not a socket",
            ],
        )

    def test_where_we_may_not_look_ourselves_that_is_said(self) -> None:
        """
        Where we may not look ourselves, that is said.
        """
        self.listen()
        real = os.lstat

        def lstat(path: Any, **options: Any) -> os.stat_result:
            if str(path).endswith("m.sock"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path, **options)

        self.patch(doctor_paths.os, "lstat", lstat)
        run = self.postfix("smtpd_milters = unix:m.sock\n")
        self.assertEqual(run["socket-hidden"]["todo"], "run doctor as root")

    def test_folder_not_to_be_entered_and_socket_not_to_be_written_are_told(self) -> None:
        """
        A folder that the user may not enter, and a socket not to be written to, are told.
        """
        self.patch(doctor, "identity_of", lambda *_: NOBODY)
        for place, words in (
            (self.folder, f"may not enter the folder {self.folder} (drwx------"),
            (self.folder / "m.sock", f"may not write to the socket {self.folder}/m.sock (srwx"),
        ):
            self.listen()
            (self.folder / "m.sock").chmod(0o777)
            place.chmod(0o700)
            run = self.postfix("smtpd_milters = unix:m.sock\n")
            self.assertIn(words, run["socket-permission"]["what"])
            self.folder.chmod(0o755)

    def test_owner_and_group_that_have_no_names_are_told_by_their_numbers(self) -> None:
        """
        An owner and a group that have no names are told by their numbers.
        """
        status = os.stat_result((stat.S_IFSOCK | 0o600, 0, 0, 0, 4_000_001, 4_000_002, 0, 0, 0, 0))
        step = doctor_paths._Step("x", status, b"acl")
        self.assertEqual(doctor_paths._rights(step), "srw-------+ 4000001:4000002")

    def test_owner_of_postfix_that_is_not_a_user_here_is_told(self) -> None:
        """
        An owner of Postfix that is not a user here is told, and nothing else is made of it.
        """
        self.listen()
        run = self.postfix("smtpd_milters = unix:m.sock\nmail_owner = nosuchuser\n")
        self.assertEqual(run.checks, {"note user-unknown", "note local-mail"})

    def test_users_and_groups_are_found_by_name_and_by_number(self) -> None:
        """
        Users and groups are found by name and by number.
        """
        uid, gid = os.geteuid(), os.getegid()
        self.assertEqual(identity_of(USER).uid, uid)
        self.assertEqual(identity_of(str(uid)).name, USER)
        self.assertIn(gid, identity_of(USER, str(gid)).gids)
        self.assertEqual(identity_of("root", "root").uid, 0)
        # What no system call takes is no user, and no group, either.
        for names in (("a\0b",), ("9" * 30,), ("root", "9" * 30)):
            self.assertRaises(KeyError, identity_of, *names)

    def test_of_owner_group_and_others_the_first_that_fits_counts(self) -> None:
        """
        Of owner, group and others the first that fits counts, and root may do all.
        """

        def rights(mode: int, who: Identity, uid: int = 1, gid: int = 1) -> bool:
            return may(os.stat_result((mode, 0, 0, 0, uid, gid, 0, 0, 0, 0)), who, 2)

        someone = Identity("someone", 5, frozenset({6}))
        self.assertTrue(rights(0, Identity("root", 0, frozenset())))
        self.assertTrue(rights(0o200, someone, uid=5))
        self.assertFalse(rights(0o022, someone, uid=5))
        self.assertTrue(rights(0o020, someone, gid=6))
        self.assertFalse(rights(0o202, someone, gid=6))
        self.assertTrue(rights(0o002, someone))
        self.assertFalse(rights(0o770, someone))

    def test_access_control_list_counts_before_the_group(self) -> None:
        """
        An access control list counts before the group.
        """
        someone = Identity("someone", 5, frozenset({6}))

        def rights(*entries: tuple[int, int, int], gid: int = 1, mode: int = 0) -> bool:
            acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
            status = os.stat_result((mode, 0, 0, 0, 1, gid, 0, 0, 0, 0))
            return may(status, someone, 2, acl)

        self.assertTrue(rights((0x02, 6, 5)))
        self.assertFalse(rights((0x02, 6, 5), (0x10, 4, 0)))
        self.assertFalse(rights((0x02, 6, 7)))
        self.assertTrue(rights((0x08, 6, 6), (0x10, 7, 0)))
        self.assertTrue(rights((0x04, 6, 0), gid=6))
        self.assertFalse(rights((0x04, 4, 0), gid=6, mode=0o002))
        self.assertTrue(rights((0x04, 0, 0), mode=0o002))

    def test_no_access_lists(self) -> None:
        """
        Where the system has no such lists, it goes by the mode; with one, by that.
        """
        acl = struct.pack("<IHHI", 2, 0x02, 6, NOBODY.uid)
        self.patch(doctor, "identity_of", lambda *_: NOBODY)
        for result, level in ((b"", "error"), (acl, "ok")):
            self.listen()
            (self.folder / "m.sock").chmod(0o700)

            def getxattr(path: Any, *_: Any, result: bytes = result, **__: Any) -> bytes:
                if not result or not str(path).endswith("m.sock"):
                    raise OSError(errno.ENODATA, "none")
                return result

            self.patch(doctor_paths.os, "getxattr", getxattr)
            run = self.postfix("smtpd_milters = unix:m.sock\n")
            self.assertEqual(run["socket-permission"]["level"], level)

    def test_folders_that_others_may_write_to_keep_sendmail_from_the_socket(self) -> None:
        """
        Folders that others may write to, and links, keep Sendmail from a socket, unless it is told
        not to mind.
        """
        for name, mode in (("group", 0o775), ("all", 0o777), ("sticky", 0o1777)):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(mode)
            self.listen(offering(), f"{name}/m.sock")
        (self.folder / "link").symlink_to("group/m.sock")
        self.listen(offering(), "good.sock")
        paths = ("group/m.sock", "all/m.sock", "sticky/m.sock", "link", "good.sock")
        filters = "".join(
            f"X{place}, S=local:{self.folder}/{path}, F=T, T=R:30s\n"
            for place, path in enumerate(paths)
        )
        text = f"O RunAsUser={USER}\nO InputMailFilters=0,1,2,3,4\n{filters}"

        def unsafe(options: str) -> list[str]:
            run = self.sendmail(options + text)
            said = [each for each in run.findings if each["check"] == "socket-unsafe"]
            return [
                each["what"].removeprefix(str(self.folder)).partition(",")[0]
                for each in said
                # The folder's own place may be one such, /tmp.
                if each["what"].startswith(str(self.folder))
            ]

        group = "/group may be written by its group"
        everybody = ["/all may be written by everybody"]
        sticky = "/sticky may be written by everybody"
        link = "/link is a symbolic link"
        self.assertEqual(unsafe(""), [group, *everybody, sticky, link, group])
        for name in ("group", "all", "sticky"):
            self.listen(offering(), f"{name}/m.sock")
        self.listen(offering(), "good.sock")
        blame = "O DontBlameSendmail=TrustStickyBit,GroupWritableDirPathSafe\n"
        self.assertEqual(unsafe(blame), [*everybody, link])


class CheckTests(MilterCase):
    """
    Settings, and the milters together.
    """

    def test_fate_of_mail_while_milter_is_down_is_told_for_each_action(self) -> None:
        """
        What becomes of mail while the milter is down is told for each action of Postfix.
        """
        table = {
            "tempfail": "ok",
            "shutdown": "ok",
            "accept": "note",
            "quarantine": "note",
            "reject": "warning",
        }
        for action, level in table.items():
            run = self.postfix(f"smtpd_milters = {{ unix:x, default_action={action} }}\n")
            self.assertEqual(run["when-down"]["level"], level, action)

    def test_time_outs_that_are_short_or_in_the_wrong_order_are_told(self) -> None:
        """
        Time-outs that are short, in the wrong order, or longer than Postfix's own, are told.
        """
        run = self.postfix(
            "smtpd_milters = { unix:x, command_timeout=100s, content_timeout=50s }\nipc_timeout=75"
        )
        self.assertIn("content_timeout is 50 s", run["timeout-short"]["what"])
        self.assertIn("write content_timeout=180s in the braces", run["timeout-short"]["todo"])
        self.assertIn("warning timeout-order", run.checks)
        self.assertIn(
            "command_timeout is 100 s, and ipc_timeout is 75", run["timeout-long"]["what"]
        )

    def test_milters_that_may_take_longer_together_than_client_waits_are_told_once(self) -> None:
        """
        Milters that may take longer together than a client waits are told once.
        """
        main = "smtpd_milters = unix:a unix:b unix:c\n"
        run = self.postfix(main, master=MASTER + MASTER.replace("smtp ", "587 "))
        self.assertIn("content_timeout of all its milters", run["timeout-sum"]["what"])

    def test_same_milter_twice_in_a_list_is_told(self) -> None:
        """
        The same milter twice in a list is told.
        """
        run = self.postfix("smtpd_milters = unix:a unix:a\n")
        self.assertIn("unix:a is there twice", run["milter-twice"]["what"])

    def test_adding_fields_before_a_milter_that_replaces_the_body_is_told(self) -> None:
        """
        One that only adds header fields, before one that may replace the body, is told.
        """
        self.listen(offering(c.SMFIF_ADDHDRS), "sign.sock")
        self.listen(offering(c.SMFIF_CHGBODY), "edit.sock")
        self.listen(offering(), "look.sock")
        for order, told in (
            ("unix:sign.sock unix:look.sock unix:none.sock unix:edit.sock", True),
            ("unix:edit.sock unix:sign.sock unix:look.sock", False),
        ):
            run = self.postfix(f"smtpd_milters = {order}\n")
            self.assertEqual("note order" in run.checks, told, order)
            self.listen(offering(c.SMFIF_ADDHDRS), "sign.sock")
            self.listen(offering(c.SMFIF_CHGBODY), "edit.sock")
            self.listen(offering(), "look.sock")

    def test_nothing_is_said_of_order_where_milter_that_failed_could_be_either(self) -> None:
        """
        Nothing is said of the order where the milter that failed could be either.
        """
        self.listen(ScriptFactory({"O": None}), "sign.sock")
        self.listen(offering(c.SMFIF_CHGBODY), "edit.sock")
        run = self.postfix("smtpd_milters = unix:sign.sock unix:edit.sock\n")
        self.assertNotIn("note order", run.checks)

    def test_names_that_postfix_does_not_have_are_told_with_what_was_meant(self) -> None:
        """
        Names in main.cf that Postfix does not have, or not yet, are told once, with what was meant.
        """
        run = self.postfix(
            "smtpd_milters = unix:a unix:b\n"
            "milter_connect_macros = j {client_adr} {zzzzzzzz} {mail_addr} {mine} daemon_name\n"
            "milter_macro_defaults = mine=x, {other}=y\n"
        )
        said = [each for each in run.findings if each["check"] == "macro-unknown"]
        self.assertEqual(
            [each["todo"] for each in said],
            [
                "write {client_addr}",
                "milter_macro_defaults = {zzzzzzzz}=value in main.cf gives it a fixed one",
            ],
        )
        self.assertEqual(run["macro-early"]["todo"], "put it into milter_mail_macros")
        self.assertEqual(run["macro-braces"]["todo"], "write {daemon_name}")

    def test_macros_asked_for_that_postfix_does_not_have_are_told(self) -> None:
        """
        Macros that a milter asks for are told if Postfix has none, or none yet.
        """
        self.listen(offering(CONNECT="j {if_name} {rcpt_addr}", HELO=""))
        run = self.postfix("smtpd_milters = unix:m.sock\n")
        self.assertIn("the milter asks for {if_name} at CONNECT", run["macro-unknown"]["what"])
        self.assertIn("milter_macro_defaults = {if_name}=value", run["macro-unknown"]["todo"])
        self.assertEqual(run["macro-early"]["todo"], "ask for it at RCPT")

    def test_asked_at_the_end(self) -> None:
        """
        Sendmail forgets a list for the end of the message without one for the end of the headers.
        """
        for lists, told in (({"EOM": "i"}, True), ({"EOM": "i", "EOH": "i"}, False)):
            self.listen(offering(**lists))
            path = self.folder / "m.sock"
            run = self.sendmail(f"O InputMailFilters=a\nXa, S=local:{path}, F=T, T=R:30s\n")
            self.assertEqual("warning macro-eom" in run.checks, told)

    def test_for_missing_macro_there_is_the_line_of_main_cf(self) -> None:
        """
        For a macro that a milter needs and does not get, there is the line of main.cf.
        """
        self.listen(offering(ENVFROM="i"))
        needs = [f"--needs={name}" for name in ("client_ptr", "{if_addr}", "i", "auth_type")]
        run = self.postfix("smtpd_milters = unix:m.sock\n", *needs)
        said = [each["todo"] for each in run.findings if each["check"] == "macro-missing"]
        self.assertEqual(
            said,
            [
                "write in main.cf: milter_connect_macros = j {daemon_name} {daemon_addr} v _"
                " {client_ptr}",
                "milter_macro_defaults = {if_addr}=value in main.cf gives it a fixed value",
                "the milter chooses its macros of MAIL itself: it has to name {auth_type}",
            ],
        )


class OutputTests(MilterCase):
    """
    What is printed.
    """

    def test_each_milter_has_a_section_with_findings_and_what_to_do(self) -> None:
        """
        Each milter has a section with its places, findings and what to do, and there is a summary.
        """
        self.listen(offering())
        self.write(
            "main.cf",
            f"mail_owner = {USER}\nqueue_directory = {self.folder}\nmail_version = 3.9\n"
            "compatibility_level = 3\n"
            "smtpd_milters = { unix:m.sock, default_action=accept }\n",
        )
        self.write("master.cf", MASTER)
        status, out = self.run_doctor("--postfix", str(self.folder))
        self.assertEqual(status, 0)
        self.assertEqual(
            out,
            f"""\
Postfix 3.9, {self.folder}

unix:m.sock
  smtpd_milters of smtp/inet
  ok       {self.folder}/m.sock: the user {USER} may connect
  ok       it answers: version 6, changes nothing
  note     while the milter is down mail passes unfiltered, and nothing but a warning in the log\
 tells of it
           -> write default_action=tempfail if no mail may pass unfiltered

The configuration
  note     mail from the local sendmail command passes no milter: non_smtpd_milters is empty
           -> set non_smtpd_milters if such mail is to be signed or filtered

1 milter: 0 error, 0 warning, 2 note, 2 ok
""",
        )

    def test_configuration_without_findings_has_no_such_section(self) -> None:
        """
        Where nothing is to be said of the configuration there is no such section.
        """
        self.listen(offering())
        path = self.write(
            "sendmail.cf",
            f"O InputMailFilters=a\nXa, S=local:{self.folder}/m.sock, F=T, T=R:30s\n"
            "O DontBlameSendmail=TrustStickyBit\n",
        )
        status, out = self.run_doctor("--sendmail", str(path))
        self.assertEqual(status, 0)
        self.assertTrue(out.startswith(f"Sendmail, {path}\n"), out)
        self.assertNotIn("The configuration", out)

    def test_is_printed_to_standard_output(self) -> None:
        """
        It is printed to standard output.
        """
        out = Terminal()
        self.patch(doctor.sys, "stdout", out)
        arguments = doctor.ArgumentParser()
        doctor.add_arguments(arguments)
        words = ["--sendmail", str(self.write("sendmail.cf", ""))]
        self.assertEqual(doctor.run(arguments.parse_args(words), reactor=self.reactor), 1)
        self.assertIn("no mail passes a milter", out.getvalue())

    def test_without_options_it_is_the_folder_of_postfix(self) -> None:
        """
        Without options it is Postfix's folder, or Sendmail's file where only that is there.
        """
        postfix, sendmail = self.folder / "postfix", self.folder / "sendmail.cf"
        self.patch(doctor, "_POSTFIX", postfix)
        self.patch(doctor, "_SENDMAIL", sendmail)
        self.assertEqual(self.diagnose().data["configuration"], str(postfix))
        sendmail.touch()
        self.assertEqual(self.diagnose().data["configuration"], str(sendmail))
        postfix.mkdir()
        (postfix / "main.cf").touch()
        self.assertEqual(self.diagnose().data["configuration"], str(postfix))

    def test_time_that_is_none_is_refused(self) -> None:
        """
        A time that is none is refused.
        """
        parser = doctor.ArgumentParser()
        doctor.add_arguments(parser)
        self.patch(doctor.sys, "stderr", Terminal())
        for value in ("x", "0", "inf", "-1"):
            with self.assertRaises(SystemExit):
                parser.parse_args([f"--timeout={value}"])

    def test_nothing_is_changed(self) -> None:
        """
        No file is written, made or touched.
        """
        self.listen(offering())
        self.write("main.cf", "")
        self.write("master.cf", "")

        def state() -> dict[Path, tuple[int, int]]:
            return {
                path: (path.stat().st_mtime_ns, path.stat().st_mode)
                for path in self.folder.iterdir()
                if path.name != "m.sock"
            }

        before = state()
        self.run_doctor("--postfix", str(self.folder))
        self.assertEqual(state(), before)
