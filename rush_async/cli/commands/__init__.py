"""The commands of the program `rush-async`, each in a module with `add_arguments(parser)` and `run(options)`."""
