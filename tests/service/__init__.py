"""
Tests of processes, logs and metrics.
"""
