"""Shared by all rooms: threads, paths, safe reading and writing of files, progress, text in messages."""
