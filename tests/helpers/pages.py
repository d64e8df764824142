"""Pages, read with a parser, and texts that try to break out of them."""

from html.parser import HTMLParser

EVIL = [
    "<script>window.ran=1;alert(1)</script>",
    '"><img src=/stolen onerror="window.ran=1">',
    "'><svg onload='window.ran=1'>",
    "javascript:window.ran=1",
    "</style><script>window.ran=1</script><style>",
    "</p></article></main></title></code><script>window.ran=1</script>",
    '" onfocus="window.ran=1" autofocus x="',
    "' onmouseover='window.ran=1' x='",
    "--><!--<![CDATA[ ]]> &lt;script&gt; &#0; &amp;amp; url(/stolen) @import '/stolen';",
    "abc\u202edef\u202c \u2067x\u2069\u2069\u2069 zero\u200bwidth\ufeff soft\xadhyphen",
    "bell\x07 escape\x1b[31m nel\x85 form\x0cfeed carriage\rreturn line\r\nend vertical\x0btab para\u2029graph",
    "tag\U000e0041\U000e007f letters",
]


class Parsed(HTMLParser):
    """Tags with their attributes, all text, the text of each sentence and of each word that has a score."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.sentences, self.words, self.text = [], [], [], ""
        self.open = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in ("meta", "input", "link"):
            self.open.append((tag, attrs))
        if attrs.get("class") == "s":
            self.sentences.append("")
        if "tabindex" in attrs:
            self.words.append(("", attrs))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.text += data
        if any(attrs.get("class") == "s" for _, attrs in self.open):
            self.sentences[-1] += data
        if any("tabindex" in attrs for _, attrs in self.open):
            text, attrs = self.words[-1]
            self.words[-1] = (text + data, attrs)
