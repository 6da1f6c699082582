"""The thread that renews leases, and the writer of logs beside it."""
