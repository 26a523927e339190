"""Reading what people have lying about (documents, chats, exports) into items for ``memory/import``.

On this side of the socket, so that no library for HTML or PDF is ever in the daemon.
"""
