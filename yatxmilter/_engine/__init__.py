"""
One MTA connection without its transport.

The order of commands, milters as members, how they are called, and the three merges.
"""
