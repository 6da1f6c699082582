"""The embedded server: a private Redis or Valkey that lives as long as a process uses it."""
