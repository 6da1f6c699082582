"""The fault bench: clients work on networks while connections, servers and processes fail, and a checker reads what they saw.

- `server` is a small server that can be killed, stopped, paused and filled;
- `history` records what each client calls and what it is answered, as lines of JSON;
- `work` is what the clients do, in one round each kind of work on a network of its own;
- `injection` breaks things meanwhile;
- `final` reads what the network holds in the end, and `observer` all of its events;
- `checker` judges a round by its histories, events and final state;
- `mutants` are scripts with a defect each, to test the checker;
- `bench` runs rounds, and `soak` is `python -m benchmarks soak`.
"""
