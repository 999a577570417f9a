"""The gateway: one request between the HTTP server side and Lava. Start reading at ``serve.py``."""
