"""What Evolution Strategies are: members and their seeds, shaped fitness, dispatch, random streams."""
