"""What a report consists of, and how it is shown: CSV, Markdown, a page, a terminal."""
