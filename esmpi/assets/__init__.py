"""What ships as data: the tiny model and the table of normals."""
