"""What derivative rules are good for: true or suspect, linear or not, reached or not."""
