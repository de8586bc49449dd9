"""Load programs and what is measured with them; see README.md."""
