"""
Tests with real MTAs (Postfix, Sendmail) and with OpenDKIM's ``miltertest``.

An MTA is started once for all tests of a module, on loopback ports and in a folder of its own
(:mod:`tests.mta.postfix`, :mod:`tests.mta.sendmail`), and delivers to a sink in the test's own
process (:mod:`tests.mta.sink`).  The milter runs in another process (:mod:`tests.mta.scripted`),
which does what the test tells it and reports the callbacks it got (:mod:`tests.mta.control`).

The scenarios are test cases without an MTA: ``verdicts``, ``edits``, ``callbacks``, ``sessions``,
``agreement``, ``several`` and ``failures``.  ``test_postfix`` and ``test_sendmail`` run them all;
where the two MTAs differ, :class:`tests.mta.mta.Traits` says how.

``install.sh`` installs the programs.  Where one is absent its tests are skipped, or fail if
``YATXMILTER_REQUIRE_MTA=1`` is set.
"""
