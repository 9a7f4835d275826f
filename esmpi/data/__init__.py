"""Problems: where they are read from, and which of them a generation sees."""
