"""The program `rush-async`."""
