"""Coverage-guided fuzzing with atheris, where it installs: `python -m bench.fuzz.upper_layer -runs=100000`."""
