"""
Three milters, each for some of the mail, and a fourth on trial.

Mail of users who have logged in gets a note; strangers must not write to the list of the staff; a
new spam check works in shadow: the log says what it would have done, and no mail notices.

    python conditions.py [ENDPOINT]
"""

import sys

from twisted.logger import globalLogPublisher, textFileLogObserver

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.conditions import authenticated, client_in, known_at, over_tls, recipient_matches
from yatxmilter.constants import SMFIF_ADDHDRS, SMFIS_CONTINUE, SMFIS_REJECT
from yatxmilter.service import run_milters

#: Who may send what strangers may not.
OURS = authenticated() | client_in("127.0.0.0/8", "::1")


class Note(Milter):
    """
    Say that we know who has sent a message.
    """

    xxfi_flags = SMFIF_ADDHDRS

    def xxfi_eom(self):
        self.smfi_addheader("X-Sent-By", "a user of example.com")


class Refuse(Milter):
    """
    Refuse recipients; which ones, the condition says.
    """

    xxfi_flags = 0

    def xxfi_envrcpt(self, argv):
        self.smfi_setreply("550", "5.7.1", "for our users only")
        return SMFIS_REJECT


class ShoutingCheck(Milter):
    """
    Refuse subjects in capital letters.
    """

    xxfi_flags = 0

    def xxfi_header(self, headerf, headerv):
        if headerf.lower() == "subject" and headerv.isupper():
            self.smfi_setreply("550", "5.7.1", "please do not shout")
            return SMFIS_REJECT
        return SMFIS_CONTINUE


@known_at("helo")
def claims_to_be_us(mail):
    """
    Whether the client says HELO with our name.
    """
    return mail.helo is not None and mail.helo.lower() == "mail.example.com"


def build_milters():
    return [
        MilterFactory(Note, when=authenticated() & over_tls()),
        MilterFactory(Refuse, when=recipient_matches("staff@example.com") & ~OURS),
        MilterFactory(Refuse, when=claims_to_be_us & ~OURS, name="OurName"),
        MilterFactory(ShoutingCheck, when=~OURS, shadow=True),
    ]


def main(argv):
    globalLogPublisher.addObserver(textFileLogObserver(sys.stdout))
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    factory = MilterProtocolFactory(build_milters(), merge="strictest")
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
