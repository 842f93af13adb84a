"""
Machines on which one of the programs is not installed: its tests are skipped, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import unittest
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from . import (
    bench,
    chain_tests,
    test_chain_equality,
    test_examples_postfix,
    test_examples_real,
    test_greylist_stores,
    test_haproxy,
    test_miltertest,
    test_postfix,
    test_remote_libmilter,
    test_remote_opendkim,
    test_send,
    test_sendmail,
    test_smtp_server,
    test_start,
)

# The first that is missing of what each test case needs, of itself or for its MTA.
_NEEDS: tuple[tuple[str, type[Any]], ...] = (
    ("postfix", test_postfix.PostfixVerdictTests),
    ("postconf", test_postfix.PostfixVerdictTests),
    ("postfix", test_chain_equality.PostfixEqualityTests),
    ("postfix", test_examples_postfix.DeployedExampleTests),
    ("postfix", test_start.StartHereTests),
    ("postfix", test_haproxy.BehindPostfixTests),
    ("postfix", test_greylist_stores.BehindPostfixTests),
    ("unshare", test_sendmail.SendmailVerdictTests),
    ("unshare", test_chain_equality.SendmailEqualityTests),
    ("unshare", test_examples_real.SendmailTests),
    ("clamd", test_examples_postfix.ClamavTests),
    ("opendkim", test_remote_opendkim.PostfixTests),
    ("opendkim-genkey", test_remote_opendkim.PostfixTests),
    ("opendkim", test_send.OpenDkimTests),
    ("opendkim-genkey", test_send.OpenDkimTests),
    ("opendkim", test_smtp_server.ExampleTests),
    ("opendkim-genkey", test_smtp_server.ExampleTests),
    ("cc", test_remote_libmilter.LibmilterTests),
    ("cc", test_send.LibmilterTests),
    ("haproxy", test_haproxy.HaproxyTests),
    ("miltertest", test_miltertest.CallbackTests),
    ("redis-server", test_greylist_stores.RedisTests),
    ("setpriv", test_greylist_stores.PostgresTests),
    ("setpriv", test_greylist_stores.RedisTests),
)


class MissingTests(SynchronousTestCase):
    """
    Without a program.
    """

    def test_skipped_before_anything_begins(self) -> None:
        """
        A test that lacks a program is skipped before it has anything to clean up: what is cleaned
        up without having been set up would be an error.
        """
        for module, name in ((bench, "_benches"), (chain_tests, "_benches")):
            self.patch(module, name, {})
        self.patch(test_greylist_stores, "_running", {})
        self.patch(os, "geteuid", lambda: 0)
        environment = {**os.environ}
        environment.pop("YATXMILTER_REQUIRE_MTA", None)
        self.patch(os, "environ", environment)
        which = shutil.which
        for missing, kind in _NEEDS:

            def search(name: str, *more: Any, missing: str = missing, **options: Any) -> Any:
                # Whatever else there is not on this machine is found all the same.
                found = which(name, *more, **options) or "/bin/true"
                return None if name == missing else found

            self.patch(shutil, "which", search)
            test = kind(next(name for name in dir(kind) if name.startswith("test_")))
            with self.assertRaises(unittest.SkipTest, msg=f"{missing}: {kind}"):
                test.setUp()
            self.assertEqual(test._cleanups, [], f"{missing}: {kind}")
