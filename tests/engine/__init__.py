"""
Tests of engine.
"""
