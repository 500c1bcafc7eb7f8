"""The HTML standard's rules for event streams, as tables of test cases.

A dispatched event is written as (event type, data, last event ID).
"""

BOM = b"\xef\xbb\xbf"
MIB = b"x" * 2**20

# Most cases test whether one of these events is dispatched, and when.
A = ("message", "a", "")
B = ("message", "b", "")
A1 = ("message", "a", "1")
B1 = ("message", "b", "1")

# name: (the arguments of Event, its bytes, what a browser dispatches)
ENCODED = {
    "text": ({"data": "a"}, b"data: a\n\n", A),
    "all fields": (
        {"data": "a", "event": "tick", "id": "7", "retry": 500},
        b"id: 7\nevent: tick\nretry: 500\ndata: a\n\n",
        ("tick", "a", "7"),
    ),
    "event type": (
        {"data": "a", "event": "tick"},
        b"event: tick\ndata: a\n\n",
        ("tick", "a", ""),
    ),
    "empty event type": (
        {"data": "a", "event": ""},
        b"event: \ndata: a\n\n",
        A,
    ),
    "event type with spaces and a colon": (
        {"data": "a", "event": " a: b "},
        b"event:  a: b \ndata: a\n\n",
        (" a: b ", "a", ""),
    ),
    "event type beyond ASCII": (
        {"data": "a", "event": "é\u2028"},
        b"event: \xc3\xa9\xe2\x80\xa8\ndata: a\n\n",
        ("é\u2028", "a", ""),
    ),
    "id": ({"data": "a", "id": "1"}, b"id: 1\ndata: a\n\n", A1),
    "id as a number": ({"data": "a", "id": 1}, b"id: 1\ndata: a\n\n", A1),
    "id 0": (
        {"data": "a", "id": 0},
        b"id: 0\ndata: a\n\n",
        ("message", "a", "0"),
    ),
    "empty id": ({"data": "a", "id": ""}, b"id: \ndata: a\n\n", A),
    "id with spaces and a colon": (
        {"data": "a", "id": " 1: 2 "},
        b"id:  1: 2 \ndata: a\n\n",
        ("message", "a", " 1: 2 "),
    ),
    "id beyond ASCII": (
        {"data": "a", "id": "é\u2028"},
        b"id: \xc3\xa9\xe2\x80\xa8\ndata: a\n\n",
        ("message", "a", "é\u2028"),
    ),
    "retry": ({"data": "a", "retry": 500}, b"retry: 500\ndata: a\n\n", A),
    "retry 0": ({"data": "a", "retry": 0}, b"retry: 0\ndata: a\n\n", A),
    "empty data": ({"data": ""}, b"data: \n\n", ("message", "", "")),
    "LF": ({"data": "a\nb"}, b"data: a\ndata: b\n\n", ("message", "a\nb", "")),
    "CR": ({"data": "a\rb"}, b"data: a\ndata: b\n\n", ("message", "a\nb", "")),
    "CRLF": (
        {"data": "a\r\nb"},
        b"data: a\ndata: b\n\n",
        ("message", "a\nb", ""),
    ),
    "LF CR": (
        {"data": "a\n\rb"},
        b"data: a\ndata: \ndata: b\n\n",
        ("message", "a\n\nb", ""),
    ),
    "LF first": (
        {"data": "\na"},
        b"data: \ndata: a\n\n",
        ("message", "\na", ""),
    ),
    "LF last": (
        {"data": "a\n"},
        b"data: a\ndata: \n\n",
        ("message", "a\n", ""),
    ),
    "LF alone": ({"data": "\n"}, b"data: \ndata: \n\n", ("message", "\n", "")),
    "CR LF LF CR CR": (
        {"data": "\r\n\n\r\r"},
        b"data: \n" * 5 + b"\n",
        ("message", "\n\n\n\n", ""),
    ),
    "U+2028 and U+2029": (
        {"data": "a\u2028b\u2029c"},
        b"data: a\xe2\x80\xa8b\xe2\x80\xa9c\n\n",
        ("message", "a\u2028b\u2029c", ""),
    ),
    "U+0085": (
        {"data": "a\x85b"},
        b"data: a\xc2\x85b\n\n",
        ("message", "a\x85b", ""),
    ),
    "VT": ({"data": "a\vb"}, b"data: a\vb\n\n", ("message", "a\vb", "")),
    "FF": ({"data": "a\fb"}, b"data: a\fb\n\n", ("message", "a\fb", "")),
    "file, group and record separator": (
        {"data": "a\x1cb\x1dc\x1ed"},
        b"data: a\x1cb\x1dc\x1ed\n\n",
        ("message", "a\x1cb\x1dc\x1ed", ""),
    ),
    "NUL": ({"data": "a\0b"}, b"data: a\0b\n\n", ("message", "a\0b", "")),
    "tab": ({"data": "\ta"}, b"data: \ta\n\n", ("message", "\ta", "")),
    "leading space": ({"data": " a"}, b"data:  a\n\n", ("message", " a", "")),
    "leading spaces on every line": (
        {"data": "  a\n  b"},
        b"data:   a\ndata:   b\n\n",
        ("message", "  a\n  b", ""),
    ),
    "trailing space": ({"data": "a "}, b"data: a \n\n", ("message", "a ", "")),
    "space": ({"data": " "}, b"data:  \n\n", ("message", " ", "")),
    "colon": ({"data": ":"}, b"data: :\n\n", ("message", ":", "")),
    "a field in the data": (
        {"data": "data: a\nid: 1"},
        b"data: data: a\ndata: id: 1\n\n",
        ("message", "data: a\nid: 1", ""),
    ),
    "an event in the data": (
        {"data": "a\n\nevent: b\n\n"},
        b"data: a\ndata: \ndata: event: b\ndata: \ndata: \n\n",
        ("message", "a\n\nevent: b\n\n", ""),
    ),
    "BOM": (
        {"data": "\ufeffa"},
        b"data: \xef\xbb\xbfa\n\n",
        ("message", "\ufeffa", ""),
    ),
    "emoji": (
        {"data": "👩🏽‍🚀"},
        "data: 👩🏽‍🚀\n\n".encode(),
        ("message", "👩🏽‍🚀", ""),
    ),
    "Chinese": (
        {"data": "你好"},
        b"data: \xe4\xbd\xa0\xe5\xa5\xbd\n\n",
        ("message", "你好", ""),
    ),
    "JSON object": (
        {"data": {"b": 1, "a": [True, None]}},
        b'data: {"b":1,"a":[true,null]}\n\n',
        ("message", '{"b":1,"a":[true,null]}', ""),
    ),
    "JSON in Chinese": (
        {"data": {"text": "你好"}},
        'data: {"text":"你好"}\n\n'.encode(),
        ("message", '{"text":"你好"}', ""),
    ),
    "JSON emoji": (
        {"data": ["👋"]},
        b'data: ["\xf0\x9f\x91\x8b"]\n\n',
        ("message", '["👋"]', ""),
    ),
    "JSON with line ends": (
        {"data": ["a\r\nb\u2028"]},
        b'data: ["a\\r\\nb\xe2\x80\xa8"]\n\n',
        ("message", '["a\\r\\nb\u2028"]', ""),
    ),
    "JSON null": ({"data": None}, b"data: null\n\n", ("message", "null", "")),
    "JSON true": ({"data": True}, b"data: true\n\n", ("message", "true", "")),
    "JSON 0": ({"data": 0}, b"data: 0\n\n", ("message", "0", "")),
    "JSON fraction": (
        {"data": -1.5},
        b"data: -1.5\n\n",
        ("message", "-1.5", ""),
    ),
    "JSON empty array": ({"data": []}, b"data: []\n\n", ("message", "[]", "")),
    "JSON empty object": ({"data": {}}, b"data: {}\n\n", ("message", "{}", "")),
}

# name: (the bytes of the complete stream, what a browser dispatches)
STREAMS = {
    "nothing": (b"", []),
    "one event": (b"data: a\n\n", [A]),
    "two events": (b"data: a\n\ndata: b\n\n", [A, B]),
    # Only one byte order mark is dropped, and only at the very start.
    "BOM": (BOM + b"data: a\n\n", [A]),
    "two BOMs": (BOM + BOM + b"data: a\n\ndata: b\n\n", [B]),
    "BOM alone": (BOM, []),
    "BOM and a comment": (BOM + b": c\ndata: a\n\n", [A]),
    "BOM and a line end": (BOM + b"\ndata: a\n\n", [A]),
    "two BOMs and a colon": (BOM + BOM + b": c\ndata: a\n\n", [A]),
    "BOM on the second line": (b"\n" + BOM + b"data: a\n\n", []),
    "BOM before the second event": (b"data: a\n\n" + BOM + b"data: b\n\n", [A]),
    "BOM in the data": (
        b"data: " + BOM + b"a\n\n",
        [("message", "\ufeffa", "")],
    ),
    "BOM cut short": (BOM[:2] + b"data: a\n\ndata: b\n\n", [B]),
    "BOM of UTF-16": (b"\xfe\xffdata: a\n\ndata: b\n\n", [B]),
    "space before the BOM": (b" " + BOM + b"data: a\n\ndata: b\n\n", [B]),
    # Lines end with CRLF, LF or CR only, which may be mixed.
    "CR": (b"data: a\r\rdata: b\r\r", [A, B]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [A, B]),
    "CRLF is one line end": (
        b"data: a\r\ndata: b\r\n\r\n",
        [("message", "a\nb", "")],
    ),
    "LF CR is two": (b"data: a\n\rdata: b\n\r", [A, B]),
    "LF, then CR": (b"data: a\n\r", [A]),
    "CR, then CRLF": (b"data: a\r\r\ndata: b\r\r\n", [A, B]),
    "LF, then CRLF": (b"data: a\n\r\ndata: b\n\r\n", [A, B]),
    "CRLF, then LF": (b"data: a\r\n\ndata: b\r\n\n", [A, B]),
    "CRLF, then CR": (b"data: a\r\n\rdata: b\r\n\r", [A, B]),
    "all three": (
        b"data: a\rdata: b\ndata: c\r\n\r",
        [("message", "a\nb\nc", "")],
    ),
    "line ends first": (b"\r\n\r\n\n\rdata: a\n\n", [A]),
    "line ends alone": (b"\n\r\r\n\n", []),
    "many blank lines": (b"data: a\n\n" + b"\n" * 999 + b"data: b\n\n", [A, B]),
    "VT, FF and U+0085 end no line": (
        b"data: a\vb\fc\xc2\x85\n\n",
        [("message", "a\vb\fc\x85", "")],
    ),
    "U+2028 and U+2029 end no line": (
        b"data: a\xe2\x80\xa8b\xe2\x80\xa9\n\n",
        [("message", "a\u2028b\u2029", "")],
    ),
    "NEL as a byte ends no line": (b"data: a\x85\n\n", [("message", "a�", "")]),
    # A line with a colon is a field. If the colon comes first, it is a comment.
    "comment": (b": c\ndata: a\n\n", [A]),
    "comment alone": (b": c\n\n", []),
    "comment of only a colon": (b":\n\ndata: a\n\n", [A]),
    "comment that looks like a field": (b":data: a\n\n", []),
    "comment between lines of data": (
        b"data: a\n: c\ndata: b\n\n",
        [("message", "a\nb", "")],
    ),
    "comment after the data": (b"data: a\n:\n\n", [A]),
    "comment between events": (b"data: a\n\n:\ndata: b\n\n", [A, B]),
    "comment of invalid bytes": (b": \xff\xc3\n\ndata: a\n\n", [A]),
    "field without a colon": (b"data\n\n", [("message", "", "")]),
    "two fields without a colon": (b"data\ndata\n\n", [("message", "\n", "")]),
    "no space": (b"data:a\n\n", [A]),
    "one space": (b"data: a\n\n", [A]),
    "two spaces": (b"data:  a\n\n", [("message", " a", "")]),
    "three spaces": (b"data:   a\n\n", [("message", "  a", "")]),
    "space alone": (b"data: \n\n", [("message", "", "")]),
    "two spaces alone": (b"data:  \n\n", [("message", " ", "")]),
    "trailing space": (b"data: a \n\n", [("message", "a ", "")]),
    "tab": (b"data:\ta\n\n", [("message", "\ta", "")]),
    "no-break space": (b"data:\xc2\xa0a\n\n", [("message", "\xa0a", "")]),
    "space before the colon": (b"data : a\n\n", []),
    "space before the field": (b" data: a\n\n", []),
    "tab before the field": (b"\tdata: a\n\n", []),
    "space before the comment": (b" : c\ndata: a\n\n", [A]),
    "space on a line": (b"data: a\n \ndata: b\n\n", [("message", "a\nb", "")]),
    "two colons": (b"data::a\n\n", [("message", ":a", "")]),
    "colons in the data": (b"data: a: b\n\n", [("message", "a: b", "")]),
    "colon alone in the data": (b"data: :\n\n", [("message", ":", "")]),
    "upper-case field": (b"DATA: a\n\n", []),
    "capitalised field": (b"Data: a\nData: b\n\n", []),
    "upper-case id": (b"ID: 1\ndata: a\n\n", [A]),
    "upper-case event": (b"EVENT: tick\ndata: a\n\n", [A]),
    "unknown field": (b"date: c\ndata: a\n\n", [A]),
    "unknown field without a colon": (b"unknown\ndata: a\n\n", [A]),
    "field with something before it": (b"xdata: c\ndata: a\n\n", [A]),
    "field with something after it": (b"datax: c\ndata: a\n\n", [A]),
    "field with a NUL after it": (b"data\0: c\ndata: a\n\n", [A]),
    "half a field": (b"dat\ndata: a\n\n", [A]),
    "JSON without a field": (b'{"data": "a"}\n\n', []),
    # A blank line ends an event, which must have data.
    "empty data": (b"data:\n\n", [("message", "", "")]),
    "two lines of data": (b"data: a\ndata: b\n\n", [("message", "a\nb", "")]),
    "empty line of data first": (
        b"data:\ndata: a\n\n",
        [("message", "\na", "")],
    ),
    "empty line of data last": (b"data: a\ndata\n\n", [("message", "a\n", "")]),
    "empty lines of data": (
        b"data\ndata:\ndata: \n\n",
        [("message", "\n\n", "")],
    ),
    "no data": (b"event: tick\nid: 1\nretry: 9\n\n", []),
    "data after an event without data": (b"event: tick\n\ndata: a\n\n", [A]),
    "blank lines without an event": (b"\n\ndata: a\n\n\n\n", [A]),
    "unfinished event": (b"data: a\n\ndata: b\n", [A]),
    "unfinished event, CR": (b"data: a\r\rdata: b\r", [A]),
    "unfinished event, CRLF": (b"data: a\r\n\r\ndata: b\r\n", [A]),
    "unfinished line": (b"data: a\n\ndata: b", [A]),
    "unfinished line with a space": (b"data: a\n\ndata: b\n ", [A]),
    "unfinished character": (b"data: a\n\ndata: \xe4\xbd", [A]),
    "unfinished everything": (b"data: a", []),
    "unfinished comment": (b"data: a\n\n: c", [A]),
    "text without a field": (b"a\n\nb\n\n", []),
    "NUL in the data": (b"data: a\0b\n\n", [("message", "a\0b", "")]),
    "NUL on a line": (b"data: a\n\0\n\n", [A]),
    "long line": (b"data: " + MIB + b"\n\n", [("message", MIB.decode(), "")]),
    "many lines of data": (
        b"data: a\n" * 9999 + b"\n",
        [("message", "\n".join("a" * 9999), "")],
    ),
    "many events": (b"data: a\n\n" * 99, [A] * 99),
    # The event type does not carry over to the next event.
    "event type": (b"event: tick\ndata: a\n\n", [("tick", "a", "")]),
    "event type last": (b"data: a\nevent: tick\n\n", [("tick", "a", "")]),
    "event type is reset": (
        b"event: tick\ndata: a\n\ndata: b\n\n",
        [("tick", "a", ""), B],
    ),
    "last event type wins": (
        b"event: tick\nevent: tock\ndata: a\n\n",
        [("tock", "a", "")],
    ),
    "empty event type": (b"event:\ndata: a\n\n", [A]),
    "event without a colon": (b"event\ndata: a\n\n", [A]),
    "empty event type last": (b"event: tick\nevent\ndata: a\n\n", [A]),
    "event type that is a space": (b"event:  \ndata: a\n\n", [(" ", "a", "")]),
    "event type with spaces": (
        b"event:  a b \ndata: a\n\n",
        [(" a b ", "a", "")],
    ),
    "event type message": (b"event: message\ndata: a\n\n", [A]),
    "event type open": (b"event: open\ndata: a\n\n", [("open", "a", "")]),
    "event type error": (b"event: error\ndata: a\n\n", [("error", "a", "")]),
    "event type in upper case": (
        b"event: TICK\ndata: a\n\n",
        [("TICK", "a", "")],
    ),
    "event type of invalid bytes": (
        b"event: \xff\ndata: a\n\n",
        [("�", "a", "")],
    ),
    "event type with a NUL": (
        b"event: a\0b\ndata: a\n\n",
        [("a\0b", "a", "")],
    ),
    "event type in Chinese": (
        "event: 你好\ndata: a\n\n".encode(),
        [("你好", "a", "")],
    ),
    # The last event ID carries over until another one replaces it.
    "id": (b"id: 1\ndata: a\n\n", [A1]),
    "id last": (b"data: a\nid: 1\n\n", [A1]),
    "id without a space": (b"id:1\ndata: a\n\n", [A1]),
    "id carries over": (b"id: 1\ndata: a\n\ndata: b\n\n", [A1, B1]),
    "id is replaced": (
        b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n",
        [A1, ("message", "b", "2")],
    ),
    "last id wins": (b"id: 2\nid: 1\ndata: a\n\n", [A1]),
    "id is reset": (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [A1, B]),
    "empty id resets": (b"id: 1\ndata: a\n\nid: \ndata: b\n\n", [A1, B]),
    "id without data": (b"id: 1\n\ndata: a\n\n", [A1]),
    "id reset without data": (
        b"id: 1\ndata: a\n\nid\n\ndata: b\n\n",
        [A1, B],
    ),
    "id after the event": (
        b"data: a\n\nid: 1\n\ndata: b\n\n",
        [A, B1],
    ),
    "id of an unfinished event": (b"data: a\n\nid: 1\ndata: b\n", [A]),
    "id with a NUL": (b"id: 1\0\ndata: a\n\n", [A]),
    "id that is a NUL": (b"id: 1\nid: \0\ndata: a\n\n", [A1]),
    "id with a NUL keeps the old one": (
        b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
        [A1, B1],
    ),
    "id with spaces": (b"id:  1 \ndata: a\n\n", [("message", "a", " 1 ")]),
    "id with a colon": (b"id: 1:2\ndata: a\n\n", [("message", "a", "1:2")]),
    "id in Chinese": ("id: 你\ndata: a\n\n".encode(), [("message", "a", "你")]),
    "id of invalid bytes": (b"id: \xff\ndata: a\n\n", [("message", "a", "�")]),
    "id of an overlong NUL": (
        b"id: \xc0\x80\ndata: a\n\n",
        [("message", "a", "��")],
    ),
    # The reconnection time is not part of any event.
    "retry": (b"retry: 500\ndata: a\n\n", [A]),
    "retry alone": (b"retry: 500\n\ndata: a\n\n", [A]),
    "retry that is no number": (b"retry: soon\ndata: a\n\n", [A]),
    "empty retry": (b"retry\nretry:\ndata: a\n\n", [A]),
    "negative retry": (b"retry: -1\ndata: a\n\n", [A]),
    "huge retry": (b"retry: " + b"9" * 5000 + b"\ndata: a\n\n", [A]),
    # Invalid UTF-8 becomes U+FFFD, one for each maximal subpart.
    "two-byte character": (b"data: \xc3\xa9\n\n", [("message", "é", "")]),
    "three-byte character": (
        b"data: \xe4\xbd\xa0\n\n",
        [("message", "你", "")],
    ),
    "four-byte character": (
        b"data: \xf0\x9f\x91\x8b\n\n",
        [("message", "👋", "")],
    ),
    "last character of all": (
        b"data: \xf4\x8f\xbf\xbf\n\n",
        [("message", "\U0010ffff", "")],
    ),
    "noncharacter": (b"data: \xef\xbf\xbf\n\n", [("message", "\uffff", "")]),
    "replacement character": (
        b"data: \xef\xbf\xbd\n\n",
        [("message", "�", "")],
    ),
    "Latin-1": (b"data: caf\xe9\n\n", [("message", "caf�", "")]),
    "GBK": (b"data: \xc4\xe3\xba\xc3\n\n", [("message", "���", "")]),
    "no such byte": (b"data: \xff\n\n", [("message", "�", "")]),
    "stray continuation": (b"data: a\x80b\n\n", [("message", "a�b", "")]),
    "stray continuations": (
        b"data: \x80\xbf\x80\n\n",
        [("message", "���", "")],
    ),
    "one byte of two": (b"data: \xc3a\n\n", [("message", "�a", "")]),
    "two bytes of three": (b"data: \xe4\xbda\n\n", [("message", "�a", "")]),
    "three bytes of four": (
        b"data: \xf0\x9f\x91a\n\n",
        [("message", "�a", "")],
    ),
    "one byte of three twice": (b"data: \xe4\xe4\n\n", [("message", "��", "")]),
    "truncated, then a character": (
        b"data: \xe4\xbd\xc3\xa9\n\n",
        [("message", "�é", "")],
    ),
    "truncated at LF": (b"data: \xe4\xbd\n\n", [("message", "�", "")]),
    "truncated at CR": (b"data: \xf0\x9f\x91\r\r", [("message", "�", "")]),
    "truncated at CRLF": (b"data: \xc3\r\n\r\n", [("message", "�", "")]),
    "continued on the next line": (
        b"data: \xc3\ndata: \xa9\n\n",
        [("message", "�\n�", "")],
    ),
    "continued where a line begins": (
        b"data: \xc3\n\xa9data: c\ndata: a\n\n",
        [("message", "�\na", "")],
    ),
    "truncated before a colon": (b"data\xc3: c\ndata: a\n\n", [A]),
    "overlong slash, two bytes": (
        b"data: \xc0\xaf\n\n",
        [("message", "��", "")],
    ),
    "overlong slash, three bytes": (
        b"data: \xe0\x80\xaf\n\n",
        [("message", "���", "")],
    ),
    "overlong slash, four bytes": (
        b"data: \xf0\x80\x80\xaf\n\n",
        [("message", "����", "")],
    ),
    "overlong LF is no line end": (
        b"data: a\xc0\x8a\xc0\x8a\n\n",
        [("message", "a����", "")],
    ),
    "overlong colon is no colon": (b"data\xc0\xba a\n\n", []),
    "greatest overlong, three bytes": (
        b"data: \xe0\x9f\xbf\n\n",
        [("message", "���", "")],
    ),
    "surrogate": (b"data: \xed\xa0\x80\n\n", [("message", "���", "")]),
    "pair of surrogates": (
        b"data: \xed\xa0\xbd\xed\xb8\x80\n\n",
        [("message", "������", "")],
    ),
    "half a surrogate": (b"data: \xed\xa0\n\n", [("message", "��", "")]),
    "above U+10FFFF": (
        b"data: \xf4\x90\x80\x80\n\n",
        [("message", "����", "")],
    ),
    "far above U+10FFFF": (
        b"data: \xf5\x80\x80\x80\n\n",
        [("message", "����", "")],
    ),
    "five bytes": (
        b"data: \xf8\x88\x80\x80\x80\n\n",
        [("message", "�����", "")],
    ),
    "six bytes": (
        b"data: \xfc\x84\x80\x80\x80\x80\n\n",
        [("message", "������", "")],
    ),
    "UTF-16": ("data: a\n\n".encode("utf-16-le"), []),
}

# name: (the bytes of the whole stream, the last event ID after it). The next
# request sends this ID without spaces around it, or no Last-Event-ID if empty.
LAST_IDS = {
    "none": (b"data: a\n\n", ""),
    "id": (b"id: 1\ndata: a\n\n", "1"),
    "id of an earlier event": (b"id: 1\ndata: a\n\ndata: b\n\n", "1"),
    "id without data": (b"id: 1\ndata: a\n\nid: 2\n\n", "2"),
    "id and nothing else": (b"id: 1\n\n", "1"),
    "id of an unfinished event": (b"id: 1\n\nid: 2\ndata: b\n", "1"),
    "id of the only event, unfinished": (b"id: 1\ndata: a\n", ""),
    "id is reset": (b"id: 1\ndata: a\n\nid\ndata: b\n\n", ""),
    "id is reset without data": (b"id: 1\ndata: a\n\nid\n\n", ""),
    "id with a NUL": (b"id: 1\n\nid: 2\0\n\n", "1"),
    "id with spaces": (b"id:  1 2 \n\n", " 1 2 "),
    "id in Chinese": ("id: 你\n\n".encode(), "你"),
    "id of invalid bytes": (b"id: \xff\n\n", "\ufffd"),
}

# name: (status, Content-Type, whether a browser reads it as an event stream)
RESPONSES = {
    "event stream": (200, "text/event-stream", True),
    "charset": (200, "text/event-stream;charset=utf-8", True),
    "space before the charset": (200, "text/event-stream ; a=b", True),
    "upper case": (200, "Text/Event-Stream", True),
    "longer type": (200, "text/event-streams", False),
    "plain text": (200, "text/plain", False),
    "HTML": (200, "text/html; charset=utf-8", False),
    "no type": (200, None, False),
    "created": (201, "text/event-stream", False),
    "no content": (204, None, False),
    "partial content": (206, "text/event-stream", False),
    "bad request": (400, "text/event-stream", False),
    "unauthorized": (401, "application/json", False),
    "not found": (404, "text/html", False),
    "server error": (500, "text/event-stream", False),
    "unavailable": (503, "text/event-stream", False),
}

# What engines do, except for their known differences.
BEHAVIOR = {
    "a body has for await": True,
    "an element has setHTML": True,
    "reader.cancel() closes a silent stream": True,
    "data after a BOM that is cut in two": ["a", "b"],
}
BACK = {"a frame that was still loading": "the page is loaded again"}

# The ids that browsers resume from if they ignore ids without data.
RESUMED_WITHOUT = {
    "id without data": "1",
    "id and nothing else": "",
    "id of an unfinished event": "",
    "id is reset without data": "1",
    "id with a NUL": "",
    "id with spaces": "",
    "id in Chinese": "",
    "id of invalid bytes": "",
}
# engine: row in the cheat sheet: table: case: result
DIFFERENCES = {
    "chromium": {
        "BOM, then LF": {"streams": {"BOM and a line end": []}},
    },
    "firefox": {
        "NUL in data or type; in an id": {
            "streams": {
                "NUL in the data": [("message", "ab", "")],
                "encoded: NUL": [("message", "ab", "")],
                "event type with a NUL": [("ab", "a", "")],
                "id with a NUL": [],
                "id that is a NUL": [],
                "id with a NUL keeps the old one": [A1],
            },
        },
        "`id` in a block without `data`": {
            "streams": {
                "id without data": [A],
                "id after the event": [A, B],
                "id reset without data": [A1, B1],
            },
            "last IDs": RESUMED_WITHOUT,
        },
        "`reader.cancel()` on a silent stream": {
            "behavior": {"reader.cancel() closes a silent stream": False},
        },
    },
    "webkit": {
        "`id` in a block without `data`": {"last IDs": RESUMED_WITHOUT},
        "UTF-16 BOM; BOM cut in two": {
            "streams": {"BOM of UTF-16": []},
            "behavior": {"data after a BOM that is cut in two": ["b"]},
        },
        "`setHTML`": {"behavior": {"an element has setHTML": False}},
        "`for await` over a body": {
            "behavior": {"a body has for await": False},
        },
        "after Back": {"back": {"a frame that was still loading": "complete"}},
    },
}

# engine: the shortest wait to reconnect by default, and with retry: 1
LEAST_WAITS_MS = {
    "chromium": (3000, 0),
    "firefox": (5000, 500),
    "webkit": (3000, 0),
}
