"""The database: transitions, reads and records of one network, and the Lua scripts."""
