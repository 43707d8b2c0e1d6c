"""Runs of the whole system, for show and for measure: real processes on free loopback ports."""
