"""Chat templates: messages in, the text of a prompt out, with what a template wants found out by trying it.

Nothing here knows about terminals, and everything may be used by several threads at once.
"""
