"""Single faults planted in the code, each run against its nearest tests: `make mutants`."""
