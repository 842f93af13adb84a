"""
Tests of connections to a remote milter that serve one SMTP connection after the other.
"""

from __future__ import annotations

from typing import Any

from tests.conversation_helpers import (
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    UNKNOWN,
    ConversationTestCase,
    full,
    names,
    packet,
)
from tests.remotes import Remote, RemoteConversation, Scripted, scripted, serving
from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer, encode_offer

CONTINUE = packet("c")
AGREED = encode_offer(Offer(6, 0x1FF, 0))
#: An SMTP connection with a message, each command as a read of its own.
CONNECTION = (CONNECT, HELO, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM)
ANSWERS: dict[str, list[bytes | None]] = {"O": [AGREED], **{x: [CONTINUE] for x in "CHMRTLNBEU"}}


class ReuseTests(ConversationTestCase):
    """
    ``RemoteMilterFactory(reuse=True)``.
    """

    def conversation(self, remote: Remote, **options: Any) -> RemoteConversation:
        return RemoteConversation(remote, **{"reuse": True, **options})

    def connection(self, conversation: RemoteConversation, *commands: bytes) -> str:
        """
        Have the MTA connect, say this and QUIT; give the letters of the answers.
        """
        conversation.connect()
        conversation.agree()
        letters = conversation.letters(*(commands or CONNECTION), QUIT)
        if not conversation.closed:
            conversation.drop()
        return letters

    def test_one_for_all(self) -> None:
        """
        One connection serves one SMTP connection after the other; for the remote milter each is
        closed before the next one comes.
        """
        far = full()
        conversation = self.conversation(serving(far))
        for _ in range(3):
            self.assertEqual(self.connection(conversation), 9 * "c")
        self.assertEqual(len(conversation.remote.servers), 1)
        self.assertEqual(names(far.calls), 3 * [*names(far.calls)[:9], "close"])
        self.assertEqual(names(far.calls)[:2], ["connect", "helo"])

    def test_not_by_default(self) -> None:
        """
        Who does not ask for it gets a connection for each SMTP connection.
        """
        conversation = self.conversation(serving(full()), reuse=False)
        for _ in range(2):
            self.assertEqual(self.connection(conversation), 9 * "c")
        self.assertEqual(len(conversation.remote.servers), 2)
        self.assertEqual(conversation.remote.open, 0)

    def test_only_where_libmilter_can(self) -> None:
        """
        A connection is kept only right behind an end of message that was answered CONTINUE.
        """
        message = CONNECTION[2:]
        for commands, kept in (
            (CONNECTION, True),
            ((*CONNECTION, *message), True),
            ((CONNECT, HELO), False),
            ((*CONNECTION, MAIL), False),
            ((*CONNECTION, UNKNOWN), False),
            ((*CONNECTION, HELO), False),
        ):
            conversation = self.conversation(scripted(ANSWERS))
            self.connection(conversation, *commands)
            self.assertEqual(conversation.remote.servers[0].letters[-1], "K" if kept else "Q")

    def test_connection_is_not_kept_behind_another_answer(self) -> None:
        """
        Nor is it kept behind another answer, or with a milter that does not answer CONNECT, or
        that speaks an older version.
        """
        for letter in "artd":
            remote = scripted({**ANSWERS, "E": [packet(letter)]})
            self.connection(self.conversation(remote))
            self.assertEqual(remote.servers[0].letters[-1], "Q")
        for version, steps in ((6, c.SMFIP_NOCONNECT), (6, c.SMFIP_NR_CONN), (5, 0)):
            remote = scripted({**ANSWERS, "O": [encode_offer(Offer(version, 0, steps))]})
            self.connection(self.conversation(remote), *CONNECTION[2:])
            self.assertEqual(remote.servers[0].letters[-1], "Q")

    def test_mta_that_offers_something_else_gets_another_connection(self) -> None:
        """
        An MTA that offers something else gets another connection.
        """
        conversation = self.conversation(serving(full()))
        self.connection(conversation)
        conversation.connect()
        conversation.agree(actions=0x1)
        conversation.send(*CONNECTION, QUIT)
        self.assertEqual(len(conversation.remote.servers), 2)
        self.connection(conversation)
        self.assertEqual(len(conversation.remote.servers), 2)

    def test_does_not_know_it(self) -> None:
        """
        A milter that closes the connection at QUIT_NC gets a new one, and nobody notices.
        """
        remote = scripted({**ANSWERS, "K": [None]})
        conversation = self.conversation(remote)
        for _ in range(3):
            self.assertEqual(self.connection(conversation), 9 * "c")
        self.assertEqual(len(remote.servers), 3)
        self.assertEqual(self.log_text(), "")

    def test_does_not_answer_then(self) -> None:
        """
        A milter that closes the connection at the next CONNECT is given that on a new one; after
        that each SMTP connection has its own, and the log says so once.
        """
        remote = scripted({**ANSWERS, "C": [CONTINUE, None, CONTINUE]})
        conversation = self.conversation(remote)
        for _ in range(4):
            self.assertEqual(self.connection(conversation), 9 * "c")
        self.assertEqual([server.letters[-1] for server in remote.servers], [*"CQQQ"])
        self.assertEqual(
            self.log_text(),
            "Milter afar cannot be given another SMTP connection on one connection (the milter"
            " closed the connection, awaited: CONNECT): from now on each has its own",
        )

    def test_two_do_not_answer_then(self) -> None:
        """
        When two connections fail in that way the log says it once.
        """
        remote = scripted({**ANSWERS, "C": [CONTINUE, None]})
        conversation = self.conversation(remote)
        both = []
        for _ in range(2):
            for _ in range(2):
                conversation.connect()
                both.append(conversation.protocol)
                conversation.agree()
            for protocol in both:
                protocol.dataReceived(b"".join(CONNECTION))
                conversation.carry()
            for protocol in both:
                protocol.dataReceived(QUIT)
            conversation.carry()
            both.clear()
            remote._serve = lambda: Scripted(ANSWERS)
        self.assertEqual(len(remote.servers), 4)
        self.assertEqual(self.log_text().count("cannot be given another"), 1)

    def test_milter_that_drops_quit_nc_is_not_waited_for_too_long(self) -> None:
        """
        A milter that drops QUIT_NC and the CONNECT behind it, as libmilter does out of place, is
        not waited for longer than a connection may take.
        """
        for timeout, limit in ((300, 4), (3, 3), (None, 4)):
            remote = scripted({**ANSWERS, "C": [CONTINUE, b""]})
            conversation = self.conversation(remote, timeout=timeout, connect_timeout=4)
            self.connection(conversation)
            conversation.connect()
            conversation.agree()
            self.assertEqual(conversation.letters(CONNECT), "")
            remote._serve = lambda: Scripted(ANSWERS)
            conversation.reactor.advance(limit)
            self.assertEqual(conversation.carry(), CONTINUE)
            self.assertEqual(conversation.letters(*CONNECTION[1:]), 8 * "c")
            self.assertEqual(remote.servers[0].letters[-2:], "KC")

    def test_usual_time_again(self) -> None:
        """
        Once it has answered on a connection that was kept a milter has its usual time.
        """
        remote = scripted({**ANSWERS, "H": [CONTINUE, b""]})
        conversation = self.conversation(remote, timeout=300, connect_timeout=4)
        self.connection(conversation)
        conversation.connect()
        conversation.agree()
        conversation.send(CONNECT, HELO)
        conversation.reactor.advance(299)
        self.assertEqual(conversation.carry(), b"")
        conversation.reactor.advance(1)
        self.assertEqual(conversation.carry(), packet("t"))

    def test_gone_for_good(self) -> None:
        """
        When there is no new connection either, ``on_error`` answers; also when the milter wants
        something else on it.
        """
        for other in (None, encode_offer(Offer(6, 0, 0))):
            remote = scripted({**ANSWERS, "C": [CONTINUE, None]})
            conversation = self.conversation(remote)
            self.connection(conversation)
            conversation.connect()
            conversation.agree()
            remote._serve = lambda other=other: Scripted({"O": [other]})
            self.assertEqual(conversation.letters(CONNECT), "t")
        self.assertIn("Milter afar failed in xxfi_connect", self.log_text())

    def test_connection_that_broke_before_the_first_command_is_replaced(self) -> None:
        """
        A connection that broke between the agreement and the first command is replaced.
        """
        conversation = self.conversation(serving(full()))
        self.connection(conversation)
        conversation.connect()
        conversation.agree()
        conversation.remote.crash()
        conversation.carry()
        self.assertEqual(conversation.letters(CONNECT), "c")

    def test_two_at_once(self) -> None:
        """
        Two SMTP connections at once have two connections; both are kept.
        """
        remote = serving(full())
        conversation = self.conversation(remote)
        conversation.agree()
        first = conversation.protocol
        conversation.send(MESSAGE)
        conversation.connect()
        conversation.agree()
        conversation.send(MESSAGE, QUIT)
        first.dataReceived(QUIT)
        conversation.carry()
        self.assertEqual((len(remote.servers), remote.open), (2, 2))

    def test_not_too_many(self) -> None:
        """
        No more connections are kept than are likely to be of use.
        """
        remote = serving(full())
        conversation = self.conversation(remote)
        protocols = []
        for _ in range(18):
            conversation.connect()
            protocols.append(conversation.protocol)
            conversation.agree()
            conversation.send(CONNECT, HELO, MESSAGE)
        for protocol in protocols:
            protocol.dataReceived(QUIT)
        conversation.carry()
        self.assertEqual((len(remote.servers), remote.open), (18, 16))

    def test_not_for_ever(self) -> None:
        """
        A connection that nobody needs for a minute is closed; no timer is left.
        """
        remote = serving(full())
        conversation = self.conversation(remote)
        self.connection(conversation)
        conversation.reactor.advance(59)
        conversation.carry()
        self.assertEqual(remote.open, 1)
        conversation.reactor.advance(1)
        conversation.carry()
        self.assertEqual(remote.open, 0)
        self.connection(conversation)
        self.assertEqual(len(remote.servers), 2)

    def test_gone_while_nobody_needs_it(self) -> None:
        """
        One that the milter has closed is forgotten, and its time with it.
        """
        remote = serving(full())
        conversation = self.conversation(remote)
        conversation.agree()
        first = conversation.protocol
        conversation.send(MESSAGE)
        conversation.connect()
        conversation.agree()
        conversation.send(MESSAGE, QUIT)
        remote.servers[1].transport.loseConnection()
        conversation.carry()
        first.dataReceived(QUIT)
        conversation.carry()
        self.assertEqual(len(conversation.reactor.getDelayedCalls()), 1)
        conversation.reactor.advance(60)
        conversation.carry()
        self.assertEqual(remote.open, 0)

    def test_does_not_go(self) -> None:
        """
        A milter that does not close the connection after QUIT has a few seconds to do so.
        """
        remote = scripted(ANSWERS)
        conversation = self.conversation(remote, reuse=False)
        self.connection(conversation)
        self.assertEqual((remote.servers[0].letters[-1], remote.open), ("Q", 1))
        conversation.reactor.advance(5)
        conversation.carry()
        self.assertEqual(remote.open, 0)
        self.assertEqual(self.log_text(), "")

    def test_what_is_kept_can_be_closed(self) -> None:
        """
        What is kept can be closed.
        """
        remote = serving(full())
        conversation = self.conversation(remote)
        self.connection(conversation)
        conversation.standing.close()
        conversation.carry()
        self.assertEqual(remote.open, 0)
        self.assertEqual(conversation.reactor.getDelayedCalls(), [])
