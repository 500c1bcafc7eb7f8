"""Six connections: why the seventh stream hangs, and two fixes

Over HTTP/1.1 a browser opens at most six connections to a host, for
all its tabs together. A stream keeps its connection. So once six
are open, everything else hangs, without an error: a stream, an
image, a page. The streams here are those of the lesson `clock`.

Notice: two of the eight streams stay `connecting`. When you close
another, one of them opens. If they share a connection, one of them
reads the stream and forwards it to the others, in all tabs; when
that one is closed, the next takes over. Over HTTP/2, one connection
carries all streams. Browsers speak it over TLS only.

Try: set STREAMS to 20 in `templates/six_connections.html`, and
reload the page: fourteen of them hang. Then put nginx in front of
the app, as the README says, and open the page there: it is loaded
over h2, and all twenty are open.

    curl -N http://127.0.0.1:5000/sse
"""

from flask import Blueprint

bp = Blueprint("six_connections", __name__)
