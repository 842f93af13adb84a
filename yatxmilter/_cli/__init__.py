"""
The sub-commands of ``python -m yatxmilter``, a module for each, and what they share.

A sub-command's module has two functions: ``add_arguments(parser)`` declares what it takes, and
``run(arguments)`` does it and answers with the exit status. It gets its name and its help in a row
of ``yatxmilter.__main__``.
"""
