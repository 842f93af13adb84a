"""
Tests of mail as MTAs treat it.
"""
