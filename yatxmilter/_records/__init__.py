"""
Recorded sessions: writing and reading them, playing them, and comparing what comes of it.
"""
