"""What every stage needs besides the method: files, saved states, flags, cost, threads."""
