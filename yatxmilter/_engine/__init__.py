"""
One MTA connection without its transport: the order of commands, milters as members, the three merges.
"""
