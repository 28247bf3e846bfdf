"""What is shown: panel, plain lines, tables, log."""
