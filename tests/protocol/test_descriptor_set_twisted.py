"""
Twisted's own tests of connections, run over the fast path: see `tests.twisted_connections`.
"""

from __future__ import annotations

import select
import unittest
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

twisted_connections: ModuleType | None
try:
    from tests import twisted_connections
except ImportError as error:
    # The latest Twisted has its tests with it, but not PyHamcrest, which they use.
    twisted_connections, reason = None, f"Twisted's own tests cannot be imported: {error}"
else:
    for case in twisted_connections.cases():
        case.__module__ = __name__
        if not hasattr(select, "epoll"):
            case.skip = "there is no epoll here, and so no connection set"
        globals()[case.__name__] = case
    del case


class LeftOutTests(SynchronousTestCase):
    """
    The list of what is left out.
    """

    if twisted_connections is None:
        skip = reason

    def test_each_test_that_is_left_out_is_one_that_twisted_has(self) -> None:
        """
        Each test that is left out is one that Twisted has.
        """
        assert twisted_connections is not None
        bases = (*twisted_connections.BUILDERS, *twisted_connections.INSTALLED)
        left_out = twisted_connections.LEFT_OUT
        missing = [name for name in left_out if not any(hasattr(base, name) for base in bases)]
        self.assertEqual(missing, [])

    def test_others_are_run(self) -> None:
        """
        There are others, on each of the reactors.
        """
        assert twisted_connections is not None
        names = unittest.TestLoader().getTestCaseNames
        for reactor in twisted_connections.REACTORS:
            found = [
                len(names(case))
                for name, case in globals().items()
                if isinstance(case, type)
                and name.endswith(f"_{reactor}Tests")
                and not name.startswith("Accepted")
            ]
            self.assertEqual(len(found), len(twisted_connections.BUILDERS))
            self.assertNotIn(0, found)
