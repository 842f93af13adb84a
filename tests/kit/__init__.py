"""
Tests of kit.
"""
