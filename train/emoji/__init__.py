"""Construction of the default corpus from npm and Debian packages."""
