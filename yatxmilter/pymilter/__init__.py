"""
Programs written for pymilter, without libmilter and without a compiler.

`factory` makes a milter factory of a class of such a program, `install` has its imports find our
``milter`` and ``Milter``, and ``yatxmilter pymilter PROGRAM`` runs it whole and unchanged.
"""

from yatxmilter.pymilter._factory import factory
from yatxmilter.pymilter._installing import install

__all__ = ["factory", "install"]
