"""
What travels between an MTA and a milter: packets, payloads, the tables of commands and actions.

Pure functions and facts; nothing here knows Twisted or a milter.
"""
