"""Coverage-guided fuzzing with atheris, where it installs: `python -m fuzz.upper_layer -runs=100000`."""
