"""The thread that renews leases."""
