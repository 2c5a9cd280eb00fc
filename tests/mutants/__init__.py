"""Do tests notice when the code is changed? See README.md."""
