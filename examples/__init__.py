"""Short programs that show the method and the library."""
