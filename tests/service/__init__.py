"""
Tests of service.
"""
