"""What the commands print: text for people, or events for machines."""
