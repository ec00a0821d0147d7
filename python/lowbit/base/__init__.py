"""What every room uses: threads, paths, files read and written safely, progress, text in messages. Knows no model."""
