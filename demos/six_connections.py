"""Six connections: why the seventh stream hangs, and two fixes

Over HTTP/1.1, a browser opens at most six connections to a host,
for all its tabs together. Each stream keeps one of them. When six
are open, everything else hangs without an error: a stream, an
image, a page. The streams here are those of the lesson `clock`.

Notice: two of the eight streams stay `connecting`. When you close
another, one of them opens. The first fix is to share a connection:
one reader forwards the events to all tabs, and when its tab is
closed, the next one takes over. The second is HTTP/2, which
browsers speak over TLS only: one connection carries all streams.

Try: set STREAMS to 20 in `templates/six_connections.html`, and
reload the page: fourteen of them hang. Then put nginx in front of
the app, as the README says, and open the page there. It is loaded
over h2, and all twenty are open.

    curl -N http://127.0.0.1:5000/sse
"""

from flask import Blueprint

bp = Blueprint("six_connections", __name__)
