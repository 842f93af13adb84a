"""
Tests of the modules for programs that are written for pymilter.
"""

from yatxmilter.pymilter import install

install()
