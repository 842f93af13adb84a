"""
Where a milter listens, written as libmilter, the MTAs or Twisted write it.
"""

from yatxmilter.protocol._endpoints import client_endpoint, server_endpoint

__all__ = ["client_endpoint", "server_endpoint"]
