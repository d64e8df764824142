"""The look of what is shown in a browser: colours, rules, and the head that every page begins with."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache

from fastshap.output.render.markup import marked, plain

STEPS = 8  # shades of either side

# Blue and orange: told apart by people who do not tell red from green.
LIGHT = {
    "paper": "#ffffff",
    "for": "#2166de",
    "against": "#d6600a",
    "ink": "#1a1c1f",
    "quiet": "#5f646b",
    "faint": "#767b82",
    "line": "#d9dce0",
}
DARK = {
    "paper": "#181a1e",
    "for": "#5c98ff",
    "against": "#ec8a34",
    "ink": "#e8eaed",
    "quiet": "#a3a8af",
    "faint": "#868b93",
    "line": "#3c4047",
}

# & is an element of class fastshap. Nothing outside is touched, and what a notebook says of paragraphs, labels and the like
# is undone inside. Where browsers can, a tooltip stands at its word and stays in the text; elsewhere at the line's beginning.
ARTICLE = """
& {
    all: initial; display: block; box-sizing: border-box; color-scheme: light dark;
    background: var(--paper); color: var(--ink);
    font: 16px/1.5 system-ui, sans-serif; direction: ltr; print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
& * { all: revert; box-sizing: border-box }
& p { margin: 0; overflow-wrap: anywhere }
& article { position: relative; padding: 1.4em 0; break-inside: avoid }
& .h { margin-bottom: .5em; font-weight: 600 }
& .e { margin-bottom: .5em; color: var(--quiet) }
& .s + .q { margin-top: .5em }
& .s { font-size: 1.125em; line-height: 2.1; white-space: pre-wrap }
& .s > [tabindex] {
    padding: .1em 0; border-radius: .2em .2em 0 0; background-clip: padding-box;
    box-decoration-break: clone; -webkit-box-decoration-break: clone;
}
@media print { & [tabindex] { outline: none } }
@media screen {
    & .t > :focus-visible + label, & .a:focus-visible ~ .l { outline: 2px solid var(--for); outline-offset: 2px }
    & .s > [tabindex]:is(:hover, :focus-visible) { outline: 2px solid var(--ink); outline-offset: 1px; cursor: default }
    & .s > [tabindex]:is(:hover, :focus-visible)::after {
        content: attr(aria-description); content: attr(aria-description) / "";
        position: absolute; left: 0; z-index: 1; width: max-content; max-width: 100%; margin-top: 2.8em; padding: .25em .6em;
        border-radius: .3em; background: var(--ink); color: var(--paper); font: 500 13px/1.4 system-ui, sans-serif;
        font-variant-numeric: tabular-nums; direction: ltr; pointer-events: none;
    }
    @supports (position-area: bottom) {
        & .s > [tabindex]:is(:hover, :focus-visible) { anchor-name: --fastshap; anchor-scope: --fastshap }
        & .s > [tabindex]:is(:hover, :focus-visible)::after {
            left: auto; margin: 5px 0; position-anchor: --fastshap; position-area: bottom;
        }
    }
}
& .s > .c {
    display: inline-block; max-width: 100%; margin: 0 .2em; padding: 0 .4em; border: 1px solid var(--line);
    border-radius: .3em; font-size: .72em; line-height: 1.5; white-space: normal; vertical-align: .1em;
}
& .c::before { content: attr(aria-label) }
& .f { color: var(--faint) }
& .own { outline: 1.5px solid var(--quiet); outline-offset: 1px; border-radius: .2em }
& .u { display: inline-block; font-size: 0; font-style: normal; white-space: nowrap }
& .u::before {
    content: attr(data-u); padding: 0 .2em; border: 1px solid var(--quiet); border-radius: 2px;
    background: var(--paper); color: var(--quiet); font: 600 10px/1.3 ui-monospace, monospace;
}
& .k {
    display: flex; flex-wrap: wrap; gap: .1em 1.6em; margin-top: .5em;
    color: var(--quiet); font-size: .8125em; font-variant-numeric: tabular-nums;
}
& .k > * { min-width: 0 }
& .k > :first-child { color: var(--ink) }
& .k > span > i { display: inline-block; width: 4.5em; height: .9em; vertical-align: -.1em }
& .k .n { background: linear-gradient(to left, var(--paper), var(--against)); border-bottom: 2px dashed var(--against) }
& .k .p { background: linear-gradient(to right, var(--paper), var(--for)); border-bottom: 2px solid var(--for) }
& .t { display: flex; flex-wrap: wrap; align-items: baseline }
& .t > input, & .a { width: 0; height: 0; margin: 0; opacity: 0 }
& .t > label {
    max-width: 100%; margin: 0 .35em .35em 0; padding: .1em .7em; border: 1px solid var(--line); border-radius: 1em;
    font-size: .9em; overflow-wrap: anywhere; cursor: pointer;
}
& .t > label:hover { border-color: var(--ink) }
& .t > :checked + label { border-color: var(--ink); background: var(--ink); color: var(--paper) }
& .t > .v { display: none; order: 1; flex: 0 0 100%; min-width: 0; margin-top: .4em }
& .t > :checked + label + .v { display: block }
& .a { position: absolute }
& .l { display: inline-block; margin-top: .4em; color: var(--quiet); font-size: .8125em; cursor: pointer }
& .l:hover { color: var(--ink) }
& .l::before {
    content: ""; display: inline-block; width: 1.1em; height: 1.1em; margin-right: .45em; border: 1px solid currentColor;
    border-radius: .2em; font-size: .9em; line-height: 1; text-align: center; vertical-align: -.15em;
}
& .a:checked ~ .l::before { content: "✓" }
& .a:not(:checked) ~ .s > .y, & .a:not(:checked) ~ * .s > .y {
    background: none; color: inherit; border-bottom: 2px solid transparent;
}
& .a:not(:checked) ~ * td.y { text-decoration: none }
@media print { & .l { display: none } }
& .b { margin-left: .35em; font-variant-numeric: tabular-nums }
& .q { margin-right: .7em; color: var(--quiet); font-size: .8125em }
@media (forced-colors: active) { & .t > :checked + label { outline: 2px solid Highlight } }
"""
PAGE = """
:root { color-scheme: light dark }
body { margin: 0 }
&.page { min-height: 100vh; padding: 2.5em 1.25em 5em }
& main { display: block; max-width: 44em; margin: 0 auto; counter-reset: text }
& h1 { margin: 0 0 .4em; font-size: 1.4em; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere }
& article { counter-increment: text }
& article + article { border-top: 1px solid var(--line) }
& article:not(:only-of-type):not(.i)::before { content: counter(text); color: var(--quiet); font-size: .8125em }
& .g { margin-top: 1.4em; padding-top: 1.4em; border-top: 1px solid var(--line); font-size: .8125em }
& .g summary { font-weight: 600; cursor: pointer }
& .g pre { margin: 1em 0 .6em; font: 1em/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
& .g dl {
    display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1em 1em; margin: 0;
    color: var(--quiet); overflow-wrap: anywhere;
}
& .g dd { margin: 0 }
& .g p { margin-top: 1em }
@media (min-width: 56em), print {
    & article:not(:only-of-type):not(.i)::before { position: absolute; right: 100%; margin: .25em 1em 0 0 }
}
@media print { &.page { min-height: 0; padding: 0 0 0 2.5em } }
"""


# Tables of scores, and bars beside them.
TABLE = """
& .w { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19em), 1fr)); gap: 1.4em 2.5em }
& .w > section { min-width: 0 }
& .o { overflow-x: auto }
& table { width: 100%; margin: 1.4em 0 0; border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums }
& caption { padding: .3em 0; font-weight: 600; text-align: start; overflow-wrap: anywhere }
& th, & td { padding: .2em .6em; border-bottom: 1px solid var(--line); font-weight: 400; text-align: end; white-space: nowrap }
& th:first-child { min-width: 6em; padding-left: 0; text-align: start; white-space: normal; overflow-wrap: anywhere }
& thead th { color: var(--quiet); font-size: .9em; white-space: normal; vertical-align: bottom }
& td.p, & td.n { text-decoration: underline 2px; text-underline-offset: .25em }
& td.p { text-decoration-color: var(--for) }
& td.n { text-decoration-style: dashed; text-decoration-color: var(--against) }
& .bars { width: 32%; min-width: 8em; padding-right: 0 }
& .bars > span {
    display: block; position: relative; height: 1em;
    background: linear-gradient(var(--line), var(--line)) 50%/1px 100% no-repeat;
}
& .bars i, & .bars u { position: absolute; top: 0; height: 100% }
& .bars .p { background: var(--for) }
& .bars .n { background: repeating-linear-gradient(135deg, var(--against) 0 5px, var(--paper) 5px 7px) }
& .bars u { top: 45%; height: 10%; background: var(--ink); text-decoration: none }
@media (max-width: 40em) { & .bars, & .more { display: none } }
"""
WIDE = "& main { max-width: 64em }"


def style(rules: str) -> str:
    """The rules with the colours of light and dark, without needless white space."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {colours(DARK)} }}"
    # An id that no element has makes the rules weigh more than a notebook's own.
    whole = f"{rules}{colours(LIGHT)}{dark}".replace("&", ".fastshap:not(#_)")
    return re.sub(r"\s*([{};])\s*|: |\s+", lambda found: found[1] or found[0].strip() or " ", whole)


def colours(palette: dict[str, str]) -> str:
    """Shades from paper to full colour; what supports the target is underlined, what opposes it dashed.

    The text is black or white, whichever stands out.
    """
    rules = ["& {", *(f"--{name}: {colour};" for name, colour in palette.items()), "}"]
    paper = bytes.fromhex(palette["paper"][1:])
    for side, name, line in (("p", "for", "solid"), ("n", "against", "dashed")):
        end = bytes.fromhex(palette[name][1:])
        for step in range(1, STEPS + 1):
            shade = bytes(round(p + (e - p) * step / STEPS) for p, e in zip(paper, end, strict=True))
            ink = "#000" if luminance(shade) > 0.18 else "#fff"
            look = f"background-color: #{shade.hex()}; color: {ink}; border-bottom: 2px {line} var(--{name})"
            rules.append(f"& .s > .{side}{step} {{ {look} }}")
    return " ".join(rules)


def luminance(colour: bytes) -> float:
    """Relative, as the contrast guidelines WCAG 2 define it; black and white stand out alike at 0.18."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@cache
def page_policy() -> str:
    """The content security policy for a page that an app sends: the page's own style and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style(PAGE + ARTICLE).encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def head(title: str, rules: str = ARTICLE) -> str:
    """A page up to and with its title; its policy forbids scripts and fetching."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{plain(title)}</title><style>{style(PAGE + rules)}</style></head>\n"
        f'<body class="fastshap page"><main><h1 dir="auto">{marked(title)}</h1>\n'
    )


END = "</main></body></html>\n"
