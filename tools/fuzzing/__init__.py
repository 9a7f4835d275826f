"""What `tools/fuzz.py` fuzzes, by readers and graders, and how inputs are made."""
