"""
Tests of the transport and the factory.
"""
