"""Table and records to a report, and the report to text."""
