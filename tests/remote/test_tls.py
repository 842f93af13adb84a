"""
Tests of milters that run elsewhere and are connected to over TLS.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from tests.conversation_helpers import ConversationTestCase, offer
from tests.remotes import AGREED, COMMANDS, CONTINUE, Remote, RemoteConversation, Scripted
from tests.secure import SecureRemote, certificate, serving_tls

_SCRIPT: dict[str, list[bytes | None]] = {
    "O": [AGREED],
    **{letter: [CONTINUE] for letter in "CHMRTLNBE"},
}


class TlsTests(ConversationTestCase):
    """
    What TLS adds.
    """

    def setUp(self) -> None:
        """
        Skip where there is no TLS.
        """
        super().setUp()
        certificate()
        self.clock = Clock()

    def secure(self) -> Remote:
        """
        Make a milter that speaks TLS.
        """
        factory = serving_tls(Factory.forProtocol(lambda: Scripted(_SCRIPT)), self.clock)
        return Remote(lambda: factory.buildProtocol(None))

    def conversation(self, remote: Remote, **options: Any) -> RemoteConversation:
        """
        Make a conversation that negotiates.
        """
        endpoint: Any = SecureRemote(remote, self.clock, **options)
        return RemoteConversation(endpoint)

    def test_message_passes(self) -> None:
        """
        A message passes.
        """
        remote = self.secure()
        conversation = self.conversation(remote)
        conversation.agree()
        self.assertEqual(conversation.letters(*COMMANDS), "ccccccc")

    def test_log_says_what_is_wrong_with_the_certificate(self) -> None:
        """
        The log says what is wrong with the certificate, and not only that the connection ended.
        """
        for options, words in (
            ({"trusting": False}, "certificate verify failed"),
            ({"name": "other.example.com"}, "other.example.com"),
        ):
            conversation = self.conversation(self.secure(), **options)
            conversation.agree()
            self.assertEqual(conversation.letters(COMMANDS[0]), "t")
            text = self.log_text()
            self.assertIn("the connection to the milter failed in TLS (", text)
            self.assertIn(words, text)

    def test_handshake_is_a_part_of_connecting(self) -> None:
        """
        A milter that takes connections, and does not shake hands, is waited for as long as one that
        takes none.
        """
        conversation = self.conversation(Remote(Protocol))
        self.assertEqual(conversation.send(offer()), b"")
        conversation.reactor.advance(4.9)
        self.assertEqual(conversation.carry(), b"")
        conversation.reactor.advance(0.2)
        self.assertEqual(conversation.letters(COMMANDS[0]), "Ot")
        self.assertIn("the milter was silent for 5 s", self.log_text())
