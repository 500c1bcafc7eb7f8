"""Six connections: why the seventh stream waits, and two cures

Over HTTP/1.1 a browser opens at most six connections to a host, for all its
tabs together. A stream keeps its connection, so once six are open whatever
comes next waits, without an error: a stream, a picture, a page. The streams
here are those of the lesson `clock`, and the server has no part in it.

Notice: two of the eight stay `connecting`, and when you close another, one of
them opens. When they share a connection, one of them reads the stream and tells
the others, in all tabs; when that one is closed, the next takes over. With
HTTP/2 one connection carries them all. Browsers speak it over TLS only.

Try: set STREAMS to 20 in `templates/six_connections.html`, and reload the page:
fourteen of them wait. Then put nginx in front of the app, as the README says,
and open the page there: it comes by h2, and all twenty are open.

    curl -N http://127.0.0.1:5000/sse
"""

from flask import Blueprint

bp = Blueprint("six_connections", __name__)
# On the page these stand beside this file.
SHOWN = ("nginx.conf", "demos/clock.py")
