"""The program `rush-async`: runs workers on any machine, and shows, steers and keeps networks."""
