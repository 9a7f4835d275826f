"""How the program was started, and how it is asked to stop."""
