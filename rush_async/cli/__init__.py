"""The program `rush-async`: runs workers on any machine, and ends them on signals."""
