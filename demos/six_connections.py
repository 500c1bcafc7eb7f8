"""Six connections: why the seventh stream hangs, and two fixes

Over HTTP/1.1, a browser opens at most six connections to a host,
across all tabs. Each stream occupies one of them. When six are
open, everything else hangs without an error: a stream, an image, a
page. The streams here are those of the lesson `clock`.

Notice: two of the eight streams stay `connecting`. Close an open
one, and one of these two connects. The first fix is to share a
connection: one reader forwards the events to all tabs, and when its
tab closes, another tab takes over. The second is HTTP/2, which
browsers use only over TLS: one connection carries all streams.

Try: set STREAMS to 20 in `templates/six_connections.html`, and
reload the page: fourteen of them hang. Then put nginx in front of
the app, as the README says, and open the page there. It loads over
h2, and all twenty open.

    curl -N http://127.0.0.1:5000/sse
"""

from flask import Blueprint

bp = Blueprint("six_connections", __name__)
