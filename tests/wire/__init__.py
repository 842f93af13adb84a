"""
Tests of packets, payloads and tables.
"""
