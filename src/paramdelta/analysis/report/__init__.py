"""The report: one HTML page that holds everything, opens offline and needs no other file."""
