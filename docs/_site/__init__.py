"""What the documentation site adds to Sphinx: pages made from the code, and links to the repository's files."""
