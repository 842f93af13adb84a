"""
The tests of yatxmilter.

They are C{twisted.trial} test cases, so C{python -m pytest} and C{python -m twisted.trial tests}
both run them.  C{tests/mta} needs a real Postfix or Sendmail, C{tests/libmilter} a C compiler and
libmilter; where the machine has none of these, the tests say so and skip.
"""

import os

if os.environ.get("YATXMILTER_TEST_PATH") == "ordinary":
    # The same tests over Twisted's own descriptor handling; also in the processes that tests start
    # from this package.
    from yatxmilter.protocol import MilterProtocolFactory

    MilterProtocolFactory.fast_path = False
