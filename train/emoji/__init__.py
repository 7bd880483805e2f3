"""Builds the default corpus from packages of npm and Debian."""
