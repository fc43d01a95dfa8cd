"""Speed, memory and quality of methods side by side: a table of rows, each measured in a process of its own."""
