"""Other libraries' names for our arrays, and the architecture behind a file's keys."""
