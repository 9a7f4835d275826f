"""What rank 0 keeps of a run while it goes: generations, lines on the screen, sinks, profiles."""
