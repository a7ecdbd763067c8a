"""A PhysioNet look-alike, a synthetic dataset and the embedded stack: what `make demo` and the tests run on."""
