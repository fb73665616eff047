"""What a run learned and forgot, for people: a table in the terminal, charts and an HTML page."""
