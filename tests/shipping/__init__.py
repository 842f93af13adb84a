"""
Tests of what goes to a host: the Debian package and the container's image.
"""
