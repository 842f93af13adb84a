"""
The example of the 0.1.1 README, unchanged: a milter that lets everything pass.

A `Milter` that overrides nothing asks the MTA for nothing: mail passes it at the cost of one
connection. Run it with ``python milter_twisted_simple.py``; the MTA calls it
``inet:127.0.0.1:1234`` (Postfix) or ``inet:1234@127.0.0.1`` (Sendmail).
"""

from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.defaults import MilterFactory

def main():
    from twisted.internet import reactor
    reactor.listenTCP(1234, MilterProtocolFactory(MilterFactory()))
    reactor.run()

if __name__ == "__main__":
    main()
