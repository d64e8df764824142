"""The result: its data, its files, and how it shows itself."""
