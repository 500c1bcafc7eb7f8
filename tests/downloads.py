"""Serve downloads of lessons, each in a process of its own.

Each line of the input is a folder, a port, and the URL of a language model. All
processes are forked from this one, so the packages are imported only once.
"""

import os
import sys

import flask_sock  # noqa: F401
import requests  # noqa: F401

for line in sys.stdin:
    folder, port, url = line.split()
    if os.fork() == 0:
        os.chdir(folder)
        sys.path[0] = folder  # instead of the folder of this file
        os.environ["OPENAI_BASE_URL"] = url
        from app import app

        app.run(port=int(port))
