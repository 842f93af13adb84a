"""
Tests of the test kit, `yatxmilter.testing`.
"""
