"""Files' content that somebody damaged."""

MARKUP = '"><script>ran=1</script>'
NASTY = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63 - 1,
        2**63,
        -(2**63),
        10**19,
        10**400,
        -(10**400),
        0.5,
        -0.0,
        1e39,
        5e-324,
    ),
    *("", "x", MARKUP, "\ud800", "\x1b]52;c;eA==\x07", "\x9b2J", "\u202e", "\0", "Infinity", "-Infinity", "NaN", "\n"),
    *([], [[]], {}, [None], [0], [[0, 0]], ["a"], {"a": 1}, [1e400], [[[[1]]]]),
]


def places(value, place=()):
    yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*place, key))


def mutated(data, dice):
    """One to three fields replaced, lost, doubled, or exchanged."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        *way, last = dice.choice([place for place in places(data) if place])
        holder = data
        for key in way:
            holder = holder[key]
        action = dice.randrange(4)
        if action == 0 and isinstance(holder, list):
            holder.insert(last, dice.choice(holder))
        elif action == 1:
            del holder[last]
        elif action == 2:
            other = dice.choice(list(holder)) if isinstance(holder, dict) else dice.randrange(len(holder))
            holder[last] = holder[other]
        else:
            holder[last] = dice.choice(NASTY)
    return data


def scratched(text, dice):
    """Some characters lost, doubled or replaced."""
    for _ in range(dice.choice((1, 2, 5))):
        i = dice.randrange(len(text))
        j = i + dice.choice((0, 1, 1, 3, 50))
        text = text[:i] + dice.choice(("", text[i:j] * 2, "9", "-", '"', "[", "}", "e9", "\\ud800", "\x1b")) + text[j:]
    return text
