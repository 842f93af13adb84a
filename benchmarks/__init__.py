"""
yatxmilter measured: side by side with other milter libraries, and against itself.
"""
