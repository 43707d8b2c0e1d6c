"""What several test modules share. A test module imports from here and from `bench.rig`, never from a test module."""
